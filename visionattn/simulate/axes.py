"""One axis of a neighborhood: the keys that its queries see, and the chunks of keys that tiles of queries visit.

Tiles and chunks live inside a dilation group, as in the kernels. Windows never move backwards along an axis, so the
keys of a tile are one interval, from its first query's first key to its last query's last; on several axes they are a
box, and its chunks are products of the axes' chunks. So every count on a map is a product of counts on its axes.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 20  # strides times tiles that are held at a time


class Axis(NamedTuple):
    """Positions of an axis, and the kernel, dilation and causality of the neighborhoods on it."""

    length: int
    kernel: int
    dilation: int = 1
    causal: bool = False


class Tiles(NamedTuple):
    """Queries a tile, keys a chunk; ``static`` chunks lie on a fixed grid, others start at a tile's first key."""

    tile: int
    chunk: int
    static: bool = False


class Visits(NamedTuple):
    """What the tiles of one axis do, by stride.

    ``tiles``: how many there are. The rest are int64 arrays, one number a stride: ``visited`` chunks of all tiles
    together, ``busiest`` of the one that visits most, ``computed`` pairs of an existing query and a key of its chunks.
    """

    tiles: int
    visited: np.ndarray
    busiest: np.ndarray
    computed: np.ndarray


def window(query: np.ndarray, length: int, kernel: int, stride: np.ndarray, causal: bool) -> tuple:
    """(first key, last key + 1) of each query of a group of ``length``: int64 arrays of the broadcast shape.

    Queries ``i`` with the same ``i // stride`` share the window of their leader, the middle one (right of the middle
    where there are two), centred on it and shifted inwards at the ends. On a causal axis the leader is the last one,
    the window ends with it, is cut at the axis' start, and no query sees a key after itself.
    """
    group = query // stride * stride
    if causal:
        leader = np.minimum(group + stride - 1, length - 1)
        return np.maximum(leader - kernel + 1, 0), query + 1
    leader = np.minimum(group + stride // 2, length - 1)
    start = np.clip(leader - kernel // 2, 0, length - kernel)
    return start, start + kernel


def _groups(axis: Axis) -> list[tuple[int, int]]:
    """(length, how many) of the dilation groups; there are at most two lengths."""
    short, longer = divmod(axis.length, axis.dilation)
    return [(n, many) for n, many in ((short + 1, longer), (short, axis.dilation - longer)) if many]


@lru_cache(maxsize=1 << 14)
def visits(axis: Axis, tiles: Tiles, strides: tuple[int, ...]) -> Visits:
    """Counts of one axis for each of ``strides``."""
    count, busiest = 0, np.zeros(len(strides), np.int64)
    visited, computed = np.zeros_like(busiest), np.zeros_like(busiest)
    for length, many in _groups(axis):
        first = np.arange(0, length, tiles.tile)
        last = np.minimum(first + tiles.tile, length) - 1
        count += many * len(first)
        step = max(1, BLOCK // len(first))
        for at in range(0, len(strides), step):
            here = slice(at, at + step)
            stride = np.array(strides[here])[:, None]
            lo = window(first, length, axis.kernel, stride, axis.causal)[0]
            hi = window(last, length, axis.kernel, stride, axis.causal)[1]
            if tiles.static:
                chunks = (hi - 1) // tiles.chunk - lo // tiles.chunk + 1
            else:
                chunks = -(-(hi - lo) // tiles.chunk)
            visited[here] += many * chunks.sum(1)
            busiest[here] = np.maximum(busiest[here], chunks.max(1))
            computed[here] += many * (chunks * (last - first + 1)).sum(1) * tiles.chunk
    return Visits(count, visited, busiest, computed)


@lru_cache(maxsize=1 << 16)
def attended(axis: Axis, stride: int) -> int:
    """Pairs of a query and a key that it sees along the axis."""
    if not axis.causal:
        return axis.length * axis.kernel
    pairs = 0
    for length, many in _groups(axis):
        start, end = window(np.arange(length), length, axis.kernel, np.int64(stride), True)
        pairs += many * int((end - start).sum())
    return pairs
