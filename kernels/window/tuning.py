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


def closed_launch(size: int, head_dim: int, wide: bool) -> tuple[int, int, int]:
    """(warps, forward stages, backward stages) of the closed kernels; ``wide``: 32-bit inputs, twice the room."""
    if wide:
        return size // 8, 1, 1
    return (size // 16, 3, 3) if head_dim <= 32 else (size // 16, 2, 2)


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
    return Tiles(64, 64, 4, 2 if head_dim <= 64 else 1)
