"""What a window is: its size, shift and partition, and how many there are on a map."""

from typing import NamedTuple

from .._arguments import ceil_div, pair

PARTITIONS = ("block", "grid")


class Geometry(NamedTuple):
    """Per-axis (rows, columns) window and shift, and whether windows are grids of distant positions."""

    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    grid: bool = False

    @property
    def positions(self) -> int:
        """How many positions a whole window holds."""
        return self.window[0] * self.window[1]

    def is_table(self, bias: tuple[int, ...]) -> bool:
        """Whether a bias of this shape is a table of relative positions rather than one number for each pair."""
        return tuple(bias[1:]) == tuple(2 * n - 1 for n in self.window)

    def is_whole(self, height: int, width: int) -> bool:
        """Whether every window of a ``height x width`` map lies wholly inside it."""
        (window_h, window_w), shift = self.window, self.shift
        return shift == (0, 0) and height % window_h == 0 and width % window_w == 0

    def packed_windows(self, height: int, width: int) -> int:
        """Windows where those that both ends of an axis cut are put together: as many as a padded map would hold."""
        return ceil_div(height, self.window[0]) * ceil_div(width, self.window[1])

    def windows(self, height: int, width: int) -> int:
        """Windows that hold any position of the map."""
        if self.grid:
            return self.packed_windows(height, width)
        count_h, count_w = (ceil_div(n - s, w) + (s > 0) for n, w, s in zip((height, width), self.window, self.shift))
        return count_h * count_w

    def pairs(self, height: int, width: int) -> int:
        """(query, key) pairs that attend on one map."""
        rows, columns = (_axis_pairs(n, w, s, self.grid) for n, w, s in zip((height, width), self.window, self.shift))
        return rows * columns


def _axis_pairs(n: int, window: int, shift: int, grid: bool) -> int:
    if grid:
        distance = ceil_div(n, window)
        lengths = [len(range(first, n, distance)) for first in range(distance)]
    else:
        starts = range(shift - window if shift else 0, n, window)
        lengths = [min(start + window, n) - max(start, 0) for start in starts]
    return sum(length**2 for length in lengths)


def make_geometry(
    window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0, partition: str = "block"
) -> Geometry:
    """A validated :class:`Geometry` from scalars or (rows, columns) pairs.

    Raises TypeError for anything else, ValueError for a window below 1, a shift outside 0..window - 1, an unknown
    partition, or a shifted grid.
    """
    if partition not in PARTITIONS:
        raise ValueError(f'partition must be "block" or "grid", got {partition!r}')
    geometry = Geometry(pair("window_size", window_size), pair("shift", shift), partition == "grid")
    if min(geometry.window) < 1:
        raise ValueError(f"window_size must be at least 1, got {window_size}")
    if any(not 0 <= s < w for s, w in zip(geometry.shift, geometry.window)):
        raise ValueError(f"shift must lie in 0..window_size - 1 per axis, got {shift} for window_size {window_size}")
    if geometry.grid and geometry.shift != (0, 0):
        raise ValueError(f'shift must be 0 with partition="grid", got {shift}')
    return geometry
