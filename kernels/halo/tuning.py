"""Tile shapes by pass, head dimension, dtype and block: a small table, never keyed by batch or map size."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """A program's tile and the chunks it walks in, (rows, columns) or numbers in a line; warps and pipeline stages."""

    tile: tuple[int, int]
    chunk: tuple[int, int]
    warps: int
    stages: int


def _line(queries: int, most: int) -> int:
    """A tile of a block's queries: no larger than holds them all."""
    return next((size for size in (16, 32, 64) if size == most or queries <= size), most)


def forward_tiles(queries: int, head_dim: int, wide: bool) -> Tiles:
    """``queries`` of a block; ``head_dim``: the larger of q's and v's, padded; ``wide``: 32-bit inputs."""
    if wide:
        return Tiles((1, _line(queries, 32)), (1, 32 if head_dim <= 64 else 16), 4 if head_dim <= 64 else 8, 1)
    tile = _line(queries, 64 if head_dim <= 128 else 32)
    return Tiles((1, tile), (1, 32), max(2, tile // 16), 3 if head_dim <= 64 else 2)


def query_tiles(queries: int, head_dim: int, wide: bool) -> Tiles:
    """The dq pass: three accumulators."""
    if wide:
        return Tiles((1, _line(queries, 32)), (1, 16), 4 if head_dim <= 32 else 8, 1)
    tile = _line(queries, 64 if head_dim <= 64 else 32)
    return Tiles((1, tile), (1, 32 if head_dim <= 128 else 16), max(4 if head_dim > 64 else 2, tile // 16),
                 2 if head_dim <= 64 else 1)  # fmt: skip


def key_tiles(head_dim: int, wide: bool) -> Tiles:
    """The dk, dv pass: tiles of the map of keys; unpipelined, since staging lse and delta costs more than it hides."""
    if wide:
        return Tiles((4, 8), (1, 16), 4 if head_dim <= 32 else 8, 1)
    if head_dim > 128:
        return Tiles((4, 8), (1, 16), 8, 1)
    return Tiles((4, 8) if head_dim > 64 else (8, 8), (1, 32), 4, 1)
