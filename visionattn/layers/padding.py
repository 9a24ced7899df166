"""Filling maps up to whole windows."""

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
