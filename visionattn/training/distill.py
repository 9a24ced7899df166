"""Learning from a teacher's answers as well as from the labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .network import build


class Teacher(nn.Module):
    """A frozen classifier and the loss against it.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; with ``hard`` the teacher's first
    choice as in DeiT, arXiv 2012.12877.

    Args:
        config: ``distill``, and the normalisation of the student's images.
        classes: names of the classes, which the teacher has to know too.

    Raises:
        UserError: where the teacher cannot be built.
    """

    def __init__(self, config: TrainConfig, classes: list[str]):
        super().__init__()
        options = self.options = config.distill
        self.model = build(
            "distill.teacher", options.teacher, options.kwargs, classes, options.checkpoint is None, options.checkpoint
        ).eval()
        self.requires_grad_(False)
        expected = self.model.pretrained_cfg
        mean, std = (torch.tensor(expected[name])[:, None, None] for name in ("mean", "std"))
        own_mean, own_std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
        self.register_buffer("factor", own_std / std, persistent=False)
        self.register_buffer("offset", (own_mean - mean) / std, persistent=False)
        self.size = expected["input_size"][-2:] if expected.get("fixed_input_size") else None

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Logits [B, classes] for images as the student sees them, normalised anew and resized if that is needed."""
        images = images * self.factor + self.offset
        if self.size is not None and tuple(self.size) != tuple(images.shape[-2:]):
            images = nn.functional.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images)

    def loss(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Mean loss of the student's float32 logits [B, classes] against the teacher's."""
        if self.options.hard:
            return nn.functional.cross_entropy(logits, answers.argmax(1))
        temperature = self.options.temperature
        student, teacher = ((x.float() / temperature).log_softmax(1) for x in (logits, answers))
        return nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
