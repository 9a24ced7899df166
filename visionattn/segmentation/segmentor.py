"""mmsegmentation's encoder and decoder, in the precision that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from visionattn.training.errors import UserError

PRECISIONS = ("fp32", "bf16")


def _compiled_in_training(head: nn.Module, mode: str) -> Callable[[Any], torch.Tensor]:
    """The head's forward, under ``torch.compile`` while it trains: its many small kernels keep a GPU waiting."""
    plain, compiled = head.forward, None

    def forward(inputs: Any) -> torch.Tensor:
        nonlocal compiled
        if not head.training:
            return plain(inputs)
        if compiled is None:
            compiled = torch.compile(plain, mode=mode, dynamic=False)
        return compiled(inputs)

    return forward


@MODELS.register_module()
class Segmentor(EncoderDecoder):
    """EncoderDecoder that runs training, validation and prediction in one precision.

    mmengine's own mixed precision covers training alone, refuses to run on a CPU, and scales losses, which bfloat16
    does not need.

    Args:
        precision: "fp32", or "bf16" for autocast to bfloat16. Weights and losses are float32 in both.
        kwargs: of mmsegmentation's EncoderDecoder.

    Raises:
        UserError: for another precision.
    """

    def __init__(self, precision: str = "fp32", **kwargs: Any) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"model.precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        super().__init__(**kwargs)
        self.precision = precision
        if getattr(self.backbone, "compiles", False):
            for head in filter(None, (self.decode_head, getattr(self, "auxiliary_head", None))):
                for one in head if isinstance(head, nn.ModuleList) else [head]:
                    one.forward = _compiled_in_training(one, self.backbone.compile_mode)

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """As in mmsegmentation: losses, predictions or logits, depending on the mode."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return super().forward(inputs, data_samples, mode)

    def slide_inference(self, inputs: torch.Tensor, batch_img_metas: list[dict]) -> torch.Tensor:
        """Overlapping windows whose logits are averaged; images smaller than a window are taken as they are."""
        # mmsegmentation writes the window's size into the metadata, which then is wrong for what comes after
        return super().slide_inference(inputs, [dict(meta) for meta in batch_img_metas])
