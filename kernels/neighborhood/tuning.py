"""Tile shapes by pass, head dimension and window: a small table, never keyed by batch or map size."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """A program's tile (rows, columns), the chunk it walks in (rows, columns), warps and pipeline stages."""

    tile: tuple[int, int]
    chunk: tuple[int, int]
    warps: int
    stages: int


def _narrow(kernel: tuple[int, int]) -> bool:
    # an 8x8 tile's box then spans at most 16 columns: whole rows of it make one chunk
    return kernel[1] <= 9


def closed_tiles(kernel: tuple[int, int]) -> tuple[int, int] | None:
    """The tile that holds a whole window of at most 64 positions, or None where the window is larger."""
    side = [1 << (k - 1).bit_length() for k in kernel]
    while side[0] * side[1] < 64:  # 64 rows fill the tensor cores' tile
        side[side[0] > side[1]] *= 2
    return (side[0], side[1]) if side[0] * side[1] == 64 else None


def forward_tiles(kernel: tuple[int, int], head_dim: int, wide: bool) -> Tiles:
    """``wide``: 32-bit inputs, which take twice the room; ``head_dim`` is the larger of q's and v's, padded."""
    if head_dim > 128 or (wide and head_dim > 64):
        return Tiles((4, 8), (4, 8), 4, 1 if wide else 2)
    if wide:
        return Tiles((4, 8), (2, 16) if _narrow(kernel) else (4, 8), 4, 2)
    if head_dim > 64:
        return Tiles((8, 8), (2, 16) if _narrow(kernel) else (4, 8), 4, 2)
    return Tiles((8, 8), (2, 16) if _narrow(kernel) else (4, 16), 4, 3)


def backward_tiles(kernel: tuple[int, int], head_dim: int, wide: bool) -> Tiles:
    """For both backward passes: their accumulators double with the head dimension."""
    if head_dim > 128:
        return Tiles((4, 8), (2, 8), 8, 1)
    if wide or head_dim > 64:
        return Tiles((4, 8), (2, 16) if _narrow(kernel) else (4, 8), 4, 1 if wide and head_dim > 64 else 2)
    return Tiles((8, 8), (2, 16) if _narrow(kernel) else (4, 8), 4, 2)
