"""Tile shapes by pass, head dimension, dtype and tokens of a region: a small table, never keyed by batch or map size.

Regions grow with the map, so that their tokens are told apart by no more than which of three tiles holds them.
"""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Tokens of a program's tile and of the chunks it walks in, warps and pipeline stages."""

    tile: int
    chunk: int
    warps: int
    stages: int


SMALLEST = 16


def line(tokens: int) -> int:
    """The tile for regions of so many tokens, unless a pass has no room for it."""
    return SMALLEST if tokens <= SMALLEST else 32 if tokens <= 32 else 64


def forward_tiles(line: int, head_dim: int, wide: bool) -> Tiles:
    """``head_dim``: the larger of q's and v's, padded to a power of two; ``wide``: 32-bit inputs, twice the room."""
    if wide:
        return Tiles(min(line, 32), 32 if head_dim <= 64 else 16, 4 if head_dim <= 64 else 8, 1)
    if head_dim > 128:
        return Tiles(min(line, 32), 32, 4, 2)
    return Tiles(line, 64 if head_dim <= 64 else 32, _warps(line, head_dim), 3 if head_dim <= 64 else 2)


def query_tiles(line: int, head_dim: int, wide: bool) -> Tiles:
    """The dq pass."""
    if wide or head_dim > 64:
        return key_tiles(line, head_dim, wide)
    return Tiles(line, 64 if line == SMALLEST else 32, _warps(line, head_dim), 2 if line == SMALLEST else 3)


def key_tiles(line: int, head_dim: int, wide: bool) -> Tiles:
    """The dk, dv pass: two accumulators; unpipelined, since staging lse and delta costs more than it hides."""
    if wide:
        return Tiles(min(line, 32), 16, 4 if head_dim <= 32 else 8, 1)
    if head_dim > 128:
        return Tiles(min(line, 32), 16, 8, 1)
    tile = min(line, 32 if head_dim > 64 else 64)
    return Tiles(tile, 64 if line == SMALLEST and head_dim <= 64 else 32, _warps(tile, head_dim), 1)


def _warps(tile: int, head_dim: int) -> int:
    return tile // 16 if head_dim <= 64 else 4
