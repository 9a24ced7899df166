"""What a partition into regions is: how many there are along each axis, and their size on a map."""

from typing import NamedTuple

from .._arguments import ceil_div, pair


class Geometry(NamedTuple):
    """Per-axis (rows, columns) number of regions."""

    regions: tuple[int, int]

    @property
    def count(self) -> int:
        """How many regions a map is cut into."""
        return self.regions[0] * self.regions[1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a region of a ``height x width`` map; the last ones may be cut, or lie outside of it."""
        return ceil_div(height, self.regions[0]), ceil_div(width, self.regions[1])

    def is_whole(self, height: int, width: int) -> bool:
        """Whether the regions divide the map."""
        return height % self.regions[0] == 0 and width % self.regions[1] == 0


def make_geometry(regions: int | tuple[int, int]) -> Geometry:
    """A validated :class:`Geometry` from an int or a (rows, columns) pair.

    Raises TypeError for anything else, ValueError for less than one region.
    """
    geometry = Geometry(pair("regions", regions))
    if min(geometry.regions) < 1:
        raise ValueError(f"regions must be at least 1 along each axis, got {regions}")
    return geometry
