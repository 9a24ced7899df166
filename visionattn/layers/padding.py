"""Filling maps up to whole windows or to a least size, and cutting them back."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from visionattn.kernels._tracing import exporting


def pad_to_multiple(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C] with zeros at the bottom and right, so that ``size`` (rows, columns) divides H and W."""
    return _pad_end(x, _remainder(x.shape[1], size[0]), _remainder(x.shape[2], size[1]))


def pad_to_least(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C] with zeros at the bottom and right, so that H and W are at least ``size`` (rows, columns)."""
    return _pad_end(x, *(_shortfall(n, least) for n, least in zip(x.shape[1:3], size)))


def _remainder(n: int, multiple: int) -> int:
    """What ``n`` lacks to a multiple; symbolic sizes come out short this way, counted as the kernels count windows."""
    return ((n - 1) // multiple + 1) * multiple - n


def _shortfall(n: int, least: int) -> int:
    """What ``n`` lacks. An exported graph has to serve both cases; a compiled one may be tied to that of its size."""
    if exporting():
        return torch.sym_max(least - n, 0)
    return least - n if n < least else 0


def _pad_end(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    # a symbolic size is padded by a symbolic number, zero or not: asking which would tie a graph to the answer
    if isinstance(rows, int) and isinstance(columns, int) and not rows and not columns:
        return x
    return pad(x, (0, 0, 0, columns, 0, rows))


def pad_start(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C] with ``size`` (rows, columns) of zeros more at the top and left."""
    rows, columns = size
    if isinstance(rows, int) and isinstance(columns, int) and not rows and not columns:
        return x
    return pad(x, (0, 0, columns, 0, rows, 0))


def crop(x: torch.Tensor, height: int, width: int, start: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """``height`` rows and ``width`` columns of [B, H, W, C], those from ``start`` (row, column) on."""
    top, left = start
    if all(isinstance(n, int) for n in (height, width, top, left)):
        return x[:, top : top + height, left : left + width]
    # whether a slice of symbolic size is contiguous would again tie a graph to the answer
    rows, columns = (torch.arange(n, device=x.device) + first for n, first in ((height, top), (width, left)))
    return x.index_select(1, rows).index_select(2, columns)
