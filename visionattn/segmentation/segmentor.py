"""mmsegmentation's encoder and decoder, in the precision that is asked for."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from visionattn.training.errors import UserError

PRECISIONS = ("fp32", "bf16")


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

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """As in mmsegmentation: losses, predictions or logits, depending on the mode."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return super().forward(inputs, data_samples, mode)

    def slide_inference(self, inputs: torch.Tensor, batch_img_metas: list[dict]) -> torch.Tensor:
        """Overlapping windows whose logits are averaged; images smaller than a window are taken as they are."""
        # mmsegmentation writes the window's size into the metadata, which then is wrong for what comes after
        return super().slide_inference(inputs, [dict(meta) for meta in batch_img_metas])
