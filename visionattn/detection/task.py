"""Object detection as a task of the training loop: model, losses, average precision, drawings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchvision.ops import nms
from torchvision.transforms.v2.functional import pil_to_tensor

from visionattn.training.errors import Unreadable, UserError
from visionattn.training.upload import Upload

from . import batches
from .config import DetConfig
from .drawing import draw_sheet
from .metrics import CocoPrecision
from .network import Detector, create_detector
from .sources import load_pictures

SHOWN, SAME = 0.4, 0.5  # scores from which on objects are drawn, overlap from which on boxes are one object's


class Detection:
    """What the loop needs to know of object detection.

    Args:
        config: the run's options.
        accelerator: devices and precision.

    Raises:
        UserError: for data, weights or arguments that do not fit.
    """

    def __init__(self, config: DetConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.masks = config.model.detector == "maskrcnn"
        self.metrics = CocoPrecision(self.masks).names()
        self.score = "mask_ap" if self.masks else "box_ap"
        self.train_images, self.val_images = load_pictures(config)
        self.classes = self.train_images.classes
        batch = config.optim.batch_size
        if len(self.train_images) < batch:
            raise UserError(f"optim.batch_size is {batch}, but there are only {len(self.train_images)} training images")
        self.model, notes = create_detector(config, self.classes)
        self.notes = [*self.train_images.notes, *self.val_images.notes, *notes]
        self.upload = Upload(accelerator.device)
        self.unreadable: dict[str, int] = {}
        self.steps_per_epoch = len(self.train_images) // batch
        self._eval_loader = None

    def sizes(self) -> str:
        """Numbers of training and validation images, for people."""
        return f"{len(self.train_images)} + {len(self.val_images)}"

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the model, enough to build it again."""
        model = self.config.model
        return dict(
            model=model.name, kwargs=model.kwargs, classes=list(self.classes), detector=model.detector,
            category_ids=list(self.train_images.category_ids), fpn_channels=model.fpn_channels,
            head_convs=model.head_convs, detector_kwargs=model.detector_kwargs)  # fmt: skip

    def compile(self, model: nn.Module, **how: Any) -> nn.Module:
        """The model with its backbone compiled; what follows it has other shapes in every step."""
        inner = model if isinstance(model, Detector) else model.module
        inner.body.compile(**how)
        return model

    def batches(self, steps: int, start: int) -> Iterator[batches.Batch]:
        """Micro batches on the host, from optimiser step ``start`` to the end of the run."""
        accelerator = self.accelerator
        return batches.train_batches(
            self.config, self.train_images, steps, start, accelerator.process_index, accelerator.num_processes,
            accelerator.device.type == "cuda")  # fmt: skip

    def _images(self, batch: batches.Batch) -> list[Tensor]:
        """The images on the device; notes which could not be read."""
        for name in filter(None, batch[2]):
            self.unreadable[name] = self.unreadable.get(name, 0) + 1
        return self.upload(*batch[0])

    def loss(self, model: nn.Module, batch: batches.Batch, step: int) -> Tensor:
        """Sum of the detector's losses on one micro batch of a step."""
        images = self._images(batch)
        targets = [dict(zip(target, self.upload(*target.values()))) for target in batch[1]]
        with self.accelerator.autocast():
            losses = model(images, targets)
        return torch.stack([x.float() for x in losses.values()]).sum()

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """COCO's average precisions in [0, 1] over the validation images, each counted once.

        Returns:
            box_ap (mean over thresholds 0.50 to 0.95), box_ap50, box_ap75, and the same of masks from Mask R-CNN.
        """
        accelerator = self.accelerator
        if self._eval_loader is None:
            self._eval_loader = batches.eval_loader(
                self.config, self.val_images, accelerator.process_index, accelerator.num_processes,
                accelerator.device.type == "cuda")  # fmt: skip
        precision = CocoPrecision(self.masks, accelerator.num_processes)
        training = model.training
        model.eval()
        for batch in self._eval_loader:
            readable = [i for i, name in enumerate(batch[2]) if not name]
            images = self._images(batch)
            if readable:
                found = self.find(model, [images[i] for i in readable])
                precision.update(found, [batch[1][i] for i in readable])
        model.train(training)
        return precision.compute()

    @torch.inference_mode()
    def find(self, model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """What a detector in evaluation mode finds on images on its device."""
        with self.accelerator.autocast():
            return model(images)

    def finish(self, model: nn.Module, found: dict[str, float], folder: Path) -> str:
        """Draw predictions; what the last line of a run says of its last evaluation."""
        text = ", ".join(f"{name.replace('_', ' ').replace('ap', 'AP')} {value:.3f}" for name, value in found.items())
        drawing = self.draw(model, folder / "predictions.png")
        return f"{text} on {len(self.val_images)} images" + (f"; predictions {drawing}" if drawing else "")

    def draw(self, model: nn.Module, path: Path) -> Path | None:
        """Draw validation images, spread over the set, with what is there and the surest of what was found."""
        count = min(self.config.run.drawings, len(self.val_images))
        rows = []
        model.eval()
        for i in range(count):
            try:
                image, truth = self.val_images[i * len(self.val_images) // count]
            except Unreadable:
                continue
            pixels = pil_to_tensor(image)
            found = {name: x.float().cpu() for name, x in self.find(model, self.upload(pixels))[0].items()}
            # one name an object: precision is measured with several, a picture of them shows nothing
            kept = nms(found["boxes"], found["scores"], SAME)
            kept = kept[found["scores"][kept] >= SHOWN].flip(0)  # the surest in front
            found = {name: value[kept] for name, value in found.items()}
            rows.append((pixels, truth, dict(found, labels=found["labels"].long())))
        return draw_sheet(path, rows, self.classes) if rows else None
