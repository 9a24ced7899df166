"""Depthwise convolution by torch, in one dtype throughout, and drawn tensors."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d


def conv_in_one_dtype(x: Tensor, taps: Tensor, added: Tensor | None = None, residual: bool = False) -> Tensor:
    """x [B, H, W, C], taps [side, side, C], added [C]: what eager PyTorch gives."""
    weight = taps.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
    out = conv2d(x.permute(0, 3, 1, 2), weight, None if added is None else added.to(x.dtype),
                 padding=taps.shape[0] // 2, groups=x.shape[3]).permute(0, 2, 3, 1)
    return x + out if residual else out


@pytest.fixture
def conv_eager() -> Callable:
    return conv_in_one_dtype


@pytest.fixture
def conv_drawn() -> Callable:
    """draw(batch, height, width, channels, side, device, bias): float64 tensors, exact in bfloat16."""

    def draw(batch: int, height: int, width: int, channels: int, side: int, device: str,
             bias: bool = True) -> dict[str, Tensor]:
        shapes = dict(x=(batch, height, width, channels), taps=(side, side, channels))
        if bias:
            shapes["added"] = (channels,)
        return {name: torch.randn(shape).bfloat16().to(device, torch.float64) for name, shape in shapes.items()}

    return draw
