"""Tile shapes by pass, head dimension, dtype and window: a small table, never keyed by batch or map size."""

import itertools
from typing import NamedTuple


class Tiles(NamedTuple):
    """A program's tile (rows, columns), the chunk it walks in (rows, columns), warps, pipeline stages, and how many
    registers a thread may take, where they are bounded so that one more program fits on a multiprocessor."""

    tile: tuple[int, int]
    chunk: tuple[int, int]
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict:
        """As kernels are launched."""
        bound = {} if self.registers is None else dict(maxnreg=self.registers)
        return dict(num_warps=self.warps, num_stages=self.stages) | bound


def closed_side(kernel: tuple[int, int]) -> tuple[int, int] | None:
    """The tile that holds a whole window of at most 64 positions, or None where the window is larger."""
    side = [1 << (k - 1).bit_length() for k in kernel]
    while side[0] * side[1] < 64:  # 64 rows fill the tensor cores' tile
        side[side[0] > side[1]] *= 2
    return (side[0], side[1]) if side[0] * side[1] == 64 else None


def closed_launch(head_dim: int, wide: bool) -> tuple[int, int, int]:
    """(warps, forward stages, backward stages) of the closed kernels."""
    if wide:
        return 8, 1, 1
    return (4, 3, 3) if head_dim <= 32 else (4, 2, 2)


def _chunk(kernel: tuple[int, int]) -> tuple[int, int]:
    # an 8x8 tile's box spans at most 16 columns up to kernel 9: whole rows of it make one chunk
    return (2, 16) if kernel[1] <= 9 else (4, 8)


def _box(kernel: tuple[int, int], stride: tuple[int, int], tile: tuple[int, int], chunk: tuple[int, int]) -> int:
    """Keys that a tile of queries meets, in whole chunks: for wide windows the time is proportional to it."""
    keys = 1
    for k, s, t, c in zip(kernel, stride, tile, chunk, strict=True):
        further = 0 if s % t == 0 else t - s if t % s == 0 else t - 1  # a stride shares one window
        keys *= -(-(k + further) // c) * c
    return keys


def _fewest(kernel: tuple[int, int], stride: tuple[int, int], *chunks: tuple[int, int]) -> tuple[tuple, tuple]:
    """Of 64 queries the tile, and the chunk, that meet the fewest keys; the first of equals."""
    pairs = itertools.product(((8, 8), (16, 4), (4, 16)), chunks)
    tile, chunk = min(pairs, key=lambda pair: _box(kernel, stride, *pair))
    return tile, chunk


def by_head(kernel: tuple[int, int], head_dim: int) -> bool:
    """Whether the programs of one head follow one another, so that its keys stay in the L2 cache."""
    return kernel[1] > 9 and head_dim > 64


def forward_tiles(kernel: tuple[int, int], stride: tuple[int, int], head_dim: int, wide: bool, bias: bool) -> Tiles:
    """``wide``: 32-bit inputs, twice the room; ``head_dim``: the larger of q's and v's, padded to a power of two."""
    if wide:
        return Tiles((4, 8), _chunk(kernel), 4 if head_dim <= 64 else 8, 1)
    if head_dim > 128:
        return Tiles((4, 8), (4, 8), 4, 2)
    if kernel[1] > 9:
        if head_dim > 64 and not bias and stride[0] % 8 == 0 and stride[1] % 16 == 0:  # 1.1 times as fast as 8x8
            return Tiles((8, 16), (8, 8), 8, 3)
        return Tiles(*_fewest(kernel, stride, (4, 16), (8, 8)), 4, 3, 168 if head_dim <= 64 else None)
    if head_dim > 64:
        return Tiles((8, 8), (2, 16), 4, 2)
    return Tiles((8, 8), (2, 16), 4 if bias else 2, 3 if bias else 2)


def query_tiles(kernel: tuple[int, int], stride: tuple[int, int], head_dim: int, wide: bool) -> Tiles:
    """The dq pass."""
    if wide or head_dim > 64:
        return key_tiles(kernel, head_dim, wide)
    if kernel[1] > 9:
        return Tiles(*_fewest(kernel, stride, (4, 16), (8, 8)), 4, 3, 168)
    return Tiles((8, 8), (2, 16), 4, 3)


def table_tiles(head_dim: int, wide: bool) -> Tiles:
    """The dq pass that also adds up the table's gradient: square blocks have the fewest displacements."""
    if wide:  # 99 KiB of shared memory, the smallest cards', hold no 4x8 tokens of 256
        return Tiles((4, 4), (4, 4), 8, 1) if head_dim > 128 else Tiles((4, 8), (4, 8), 4 if head_dim <= 32 else 8, 1)
    if head_dim > 128:
        return Tiles((4, 8), (4, 8), 8, 1)
    if head_dim > 64:  # 8x8 keys spill
        return Tiles((8, 8), (4, 8), 4, 2)
    return Tiles((8, 8), (8, 8), 4, 2 if head_dim > 32 else 3, 168)


def key_tiles(kernel: tuple[int, int], head_dim: int, wide: bool) -> Tiles:
    """The dk, dv pass: two accumulators; unpipelined, since staging lse and delta costs more than it hides."""
    if wide:
        return Tiles((4, 8), (2, 8), 4 if head_dim <= 32 else 8, 1)
    if head_dim > 128:
        return Tiles((4, 8), (2, 8), 8, 1)
    if head_dim > 64:  # kernel 80 on an H200: 2.6 times as fast as tiles of 4x8
        return Tiles((8, 8), (4, 8), 4, 3) if kernel[1] > 9 else Tiles((4, 8), (2, 16), 4, 1)
    if kernel[1] > 9:
        return Tiles(*_fewest(kernel, (1, 1), (4, 8), (2, 16)), 4, 1)
    return Tiles((8, 8), (2, 16), 4, 1)
