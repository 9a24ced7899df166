"""Tile shapes by head dimension and dtype: a small table, never keyed by batch or map size."""

from typing import NamedTuple

SLICE = 4096  # tokens of an image that one program walks; larger maps are cut, and partial sums added up
SLICES = 64  # at most
PARTS = 8  # partial sums that every program adds up itself; more are added up once in between


class Tiles(NamedTuple):
    """Tokens that a program takes at a time, warps and pipeline stages."""

    chunk: int
    warps: int
    stages: int


def forward_tiles(dim: int, wide: bool) -> Tiles:
    """``dim``: channels of a group, padded to a power of two; ``wide``: 32-bit inputs."""
    if wide:
        return Tiles(32 if dim <= 64 else 16, 4 if dim <= 32 else 8, 2)
    return Tiles(64, 4, 4) if dim <= 32 else Tiles(64, 4, 3) if dim <= 64 else Tiles(32, 8, 2)


def backward_tiles(dim: int, wide: bool) -> Tiles:
    """As :func:`forward_tiles`; twice the products a token."""
    if wide:
        return Tiles(32 if dim <= 64 else 16, 4 if dim <= 32 else 8, 1)
    return Tiles(64, 4, 3) if dim <= 32 else Tiles(64, 4, 2) if dim <= 64 else Tiles(32, 8, 2)
