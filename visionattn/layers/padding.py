"""Filling maps up to whole windows, and cutting them back."""

from __future__ import annotations

import torch
from torch.nn.functional import pad


def pad_to_multiple(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C] with zeros at the bottom and right, so that ``size`` (rows, columns) divides H and W."""
    rows, columns = -x.shape[1] % size[0], -x.shape[2] % size[1]
    # a symbolic size is padded by a symbolic number, zero or not: asking which would tie a graph to the answer
    if isinstance(rows, int) and isinstance(columns, int) and not rows and not columns:
        return x
    return pad(x, (0, 0, 0, columns, 0, rows))


def crop(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The first ``height`` rows and ``width`` columns of [B, H, W, C]."""
    if isinstance(height, int) and isinstance(width, int):
        return x[:, :height, :width]
    # whether a slice of symbolic size is contiguous would again tie a graph to the answer
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    return x.index_select(1, rows).index_select(2, columns)
