"""Tile shapes by pass, head dimension, dtype and window: a small table, never keyed by batch or map size."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Positions of a program's tile and of the chunks it walks in, warps and pipeline stages."""

    tile: int
    chunk: int
    warps: int
    stages: int


def closed_size(positions: int) -> int | None:
    """The tile that holds a whole window of at most 64 positions, or None where the window is larger."""
    return next((size for size in (16, 32, 64) if positions <= size), None)


def closed_forward(size: int, head_dim: int, wide: bool) -> dict:
    """The closed forward's launch options; ``wide``: 32-bit inputs, twice the room.

    Registers are bounded where the bound costs no spills: four programs a multiprocessor are launched, and four fit.
    """
    if wide:
        return dict(num_warps=size // 8, num_stages=1)
    if head_dim <= 32:
        return dict(num_warps=size // 16, num_stages=3, maxnreg=128)
    return dict(num_warps=size // 16, num_stages=2)


def closed_backward(size: int, head_dim: int, wide: bool, alike: bool) -> dict:
    """The closed backward's launch options; ``alike``: no window is cut or rolled, so that registers are left."""
    if wide:
        return dict(num_warps=size // 8, num_stages=1)
    if head_dim <= 32:
        return dict(num_warps=size // 16, num_stages=3)
    return dict(num_warps=size // 16, num_stages=2 if alike else 1)


def forward_tiles(head_dim: int, wide: bool) -> Tiles:
    """``head_dim``: the larger of q's and v's, padded to a power of two."""
    if wide:
        return Tiles(32, 32 if head_dim <= 64 else 16, 4 if head_dim <= 64 else 8, 1)
    if head_dim > 128:
        return Tiles(32, 32, 4, 2)
    return Tiles(64, 64 if head_dim <= 64 else 32, 4, 3 if head_dim <= 64 else 2)


def query_tiles(head_dim: int, wide: bool) -> Tiles:
    """The dq pass."""
    if wide or head_dim > 64:
        return key_tiles(head_dim, wide)
    return Tiles(64, 32, 4, 3)


def key_tiles(head_dim: int, wide: bool) -> Tiles:
    """The dk, dv pass: two accumulators; unpipelined, since staging lse and delta costs more than it hides."""
    if wide:
        return Tiles(32, 16, 4 if head_dim <= 32 else 8, 1)
    if head_dim > 128:
        return Tiles(32, 16, 8, 1)
    return Tiles(32 if head_dim > 64 else 64, 32, 4, 1)


def bias_tiles(head_dim: int, wide: bool) -> Tiles:
    """The bias gradient's blocks of queries and of keys."""
    if wide or head_dim > 128:
        return Tiles(32, 32, 4, 1)
    return Tiles(64, 64, 4, 2) if head_dim <= 64 else Tiles(32, 64, 4, 1)
