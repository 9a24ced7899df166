"""Tile shapes by side of the filter and by what a small map leaves of a tile: a small table, never keyed by batch."""

import torch

# Measured on an H200 in bfloat16, with batches of 128; README.md has the figures.


def convolve(side: int, height: int, width: int, channels: int, dtype: torch.dtype) -> dict:
    """Rows and columns of a program's tile, its channels, and warps; wide tiles for wide maps."""
    wide = width > 16 and channels % (64 if side == 5 else 128)
    columns = 32 if wide else 16 if width > 8 else 8
    found = dict(TH=_rows(height), TW=columns, BC=1024 // columns, num_warps=4, num_stages=1)
    if side <= 3:  # tall tiles only where registers are capped, which spills in float32
        found |= dict(TH=8, maxnreg=128) if wide and dtype != torch.float32 else dict(TH=4)
    return found


def filters(height: int) -> dict:
    """The filters' gradient: a sum a tap in registers, so few channels a thread."""
    return dict(TH=_rows(height), TW=8, BC=32, num_warps=4, num_stages=1)


def _rows(height: int) -> int:
    """Of 8 and 7 what covers a small map with fewer rows."""
    return 7 if height <= 14 and height != 8 else 8
