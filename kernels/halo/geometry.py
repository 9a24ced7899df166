"""What a block with its halo is: their sizes, how far apart queries lie, and how many blocks there are on a map."""

from typing import NamedTuple

from .._arguments import ceil_div, pair


class Geometry(NamedTuple):
    """Per-axis (rows, columns) block, halo, and distance of the queries."""

    block: tuple[int, int]
    halo: tuple[int, int]
    stride: tuple[int, int] = (1, 1)

    @property
    def window(self) -> tuple[int, int]:
        """Keys of a block along each axis: the block and a halo on either side."""
        return self.block[0] + 2 * self.halo[0], self.block[1] + 2 * self.halo[1]

    @property
    def queries(self) -> tuple[int, int]:
        """Queries of a block along each axis."""
        return self.block[0] // self.stride[0], self.block[1] // self.stride[1]

    def query_map(self, height: int, width: int) -> tuple[int, int]:
        """Size of the map of queries above ``height x width`` keys."""
        return ceil_div(height, self.stride[0]), ceil_div(width, self.stride[1])

    def blocks(self, height: int, width: int) -> tuple[int, int]:
        """Blocks along each axis of a map of keys; the last ones may reach beyond it."""
        return ceil_div(height, self.block[0]), ceil_div(width, self.block[1])


def make_geometry(
    block_size: int | tuple[int, int], halo_size: int | tuple[int, int], stride: int | tuple[int, int] = 1
) -> Geometry:
    """A validated :class:`Geometry` from scalars or (rows, columns) pairs.

    Raises TypeError for anything else, ValueError for a block below 1, a halo below 0, or a stride that does not divide
    the block.
    """
    geometry = Geometry(pair("block_size", block_size), pair("halo_size", halo_size), pair("stride", stride))
    if min(geometry.block) < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if min(geometry.halo) < 0:
        raise ValueError(f"halo_size must be at least 0, got {halo_size}")
    if any(s < 1 or b % s for s, b in zip(geometry.stride, geometry.block)):
        raise ValueError(f"stride must divide block_size per axis, got {stride} for block_size {block_size}")
    return geometry
