"""Position encodings that convolutions give."""

from __future__ import annotations

import torch
from torch import nn

from visionattn.layers.memory import nchw


class ConvPositionEncoding(nn.Module):
    """A map plus a depthwise convolution of it, whose zero padding tells where the borders are (arXiv 2102.10882).

    Args:
        dim: channels of the map.
        kernel_size: side of the convolution, odd.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: for an even ``kernel_size``.
    """

    def __init__(self, dim: int, kernel_size: int = 3, device=None, dtype=None) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.proj = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(nchw(x)).permute(0, 2, 3, 1)
