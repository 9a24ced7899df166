"""Position encodings that convolutions give."""

from __future__ import annotations

import torch
from torch import nn

from visionattn.kernels import depthwise_conv
from visionattn.kernels._tracing import exporting
from visionattn.layers.memory import nchw


def filtered(conv: nn.Conv2d, x: torch.Tensor, residual: bool = False) -> torch.Tensor:
    """A map [B, H, W, C] under a depthwise convolution that keeps its size; with ``residual`` the map plus that."""
    if exporting():  # where the op runs torch's convolution, that is not to ask how the map lies either
        x = nchw(x).permute(0, 2, 3, 1)
    return depthwise_conv(x, conv.weight, conv.bias, residual)


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
        return filtered(self.proj, x, residual=True)
