"""Which stride, and which tiles, waste the least: for a kernel, or for all kernels that leave a given sparsity.

Along an axis the stride that wastes the fewest chunks does not depend on the other axes, so each axis is asked alone
and the axes are then multiplied out, for all kernels at once.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import prod

import numpy as np

from .axes import Axis, Tiles, attended, visits
from .model import Problem, Result, Tiling, simulate

KERNELS = {1: 512, 2: 128, 3: 48}  # of an axis that are looked at, by the number of axes


def shapes(positions: int, size: Sequence[int]) -> list[tuple[int, ...]]:
    """The boxes of ``positions`` (a power of two) with a power of two an axis, none longer than the map needs."""
    longest = [1 << (n - 1).bit_length() for n in size]
    exponents = [range(n.bit_length()) for n in longest]
    return [box for e in product(*exponents) if prod(box := tuple(1 << one for one in e)) == positions]


def tilings(tile_positions: int, chunk_positions: int, size: Sequence[int], static: bool = False) -> list[Tiling]:
    """All tilings with so many queries a tile and keys a chunk, both powers of two. Raises ValueError for others."""
    for name, n in (("tile size", tile_positions), ("chunk size", chunk_positions)):
        if n < 1 or n & (n - 1) or not shapes(n, size):
            raise ValueError(f"{name} must be a power of two that fits the map, got {n}")
    return [Tiling(*one, static) for one in product(shapes(tile_positions, size), shapes(chunk_positions, size))]


def thinned(low: int, high: int, most: int) -> list[int]:
    """The numbers low..high, or where they are many low and the multiples of a power of two, as tiles are."""
    step = 1 << ((high - low) // most).bit_length()
    return [low, *range((low // step + 1) * step, high + 1, step)]


def _candidates(size: Sequence[int], dilation: Sequence[int], share: float) -> list[list[int]]:
    """Kernels of every axis within a factor of two of an even share of the map, so that windows look like the map."""
    even = share ** (1 / len(size))
    found = []
    for n, d in zip(size, dilation):
        low = min(max(1, int(n * even / 2)), n // d)
        found.append(thinned(low, min(max(low, -int(-n * even * 2)), n // d), KERNELS[len(size)]))
    return found


def _fewest(axis: Axis, tiles: Tiles) -> tuple[int, int]:
    """(stride, visited chunks): the smallest stride among those whose chunks hold the fewest hidden pairs."""
    strides = tuple(thinned(1, axis.kernel, 256))
    found = visits(axis, tiles, strides).visited
    best = int((found / [attended(axis, stride) for stride in strides]).argmin())
    return strides[best], int(found[best])


def best(
    size: Sequence[int],
    choose: Callable[[tuple[int, ...]], Iterable[Tiling]] | Sequence[Tiling],
    sparsity: float | None = None,
    kernel: Sequence[int] | None = None,
    tolerance: float = 0.01,
    dilation: Sequence[int] | None = None,
    causal: Sequence[bool] | None = None,
    top: int = 10,
    full: Callable[[Problem], Tiling] | None = None,
) -> list[Result]:
    """The ``top`` settings by how much of the FLOP-only speed-up they keep, then small strides, then the sparsity.

    Strides and kernels beyond a few hundred are looked at in steps of a power of two.

    Args:
        size: the map.
        choose: the tilings to choose among, or a function of the kernel that gives its tilings.
        sparsity: share of hidden pairs to aim at, within ``tolerance``; of a causal map, before causality.
        kernel: one kernel instead of a sparsity.
        full: gives full attention's tiling; the setting's own unless given.

    Raises ValueError where no kernel has the sparsity.
    """
    dilation, causal = dilation or (1,) * len(size), causal or (False,) * len(size)
    if kernel is not None:
        grid, target = [[k] for k in kernel], 1 - prod(kernel) / prod(size)
    else:
        grid, target = _candidates(size, dilation, 1 - sparsity), sparsity
    kernels = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(size))
    off = np.abs(1 - kernels.prod(1) / prod(size) - target)
    kept = off <= tolerance
    if not kept.any():
        raise ValueError(f"no kernel on {'x'.join(map(str, size))} leaves a sparsity of {target} +- {tolerance}")
    kernels, off = kernels[kept], off[kept]

    if callable(choose):
        rows: dict[Tiling, list[int]] = {}
        for row, one in enumerate(kernels.tolist()):
            for tiling in choose(tuple(one)):
                rows.setdefault(tiling, []).append(row)
        by_tiling = {tiling: np.array(found) for tiling, found in rows.items()}
    else:
        by_tiling = dict.fromkeys(choose, np.arange(len(kernels)))

    ranked = []
    for tiling, rows_ in by_tiling.items():
        visited, pairs, strides = np.ones(len(rows_)), np.ones(len(rows_)), []
        for axis, (n, d, one_way, tiles) in enumerate(zip(size, dilation, causal, tiling.axes)):
            distinct, place = np.unique(kernels[rows_, axis], return_inverse=True)
            found = [_fewest(Axis(n, int(k), d, one_way), tiles) for k in distinct]
            seen = [attended(Axis(n, int(k), d, one_way), s) for k, (s, _) in zip(distinct, found)]
            visited *= np.array([chunks for _, chunks in found], float)[place]
            pairs *= np.array(seen, float)[place]
            strides.append(np.array([s for s, _ in found])[place])
        needed = pairs / (visited * tiling.product)
        stride = np.stack(strides, -1)
        order = np.lexsort((off[rows_], stride.max(1), stride.prod(1), -needed.round(3)))[: 4 * top]
        for row in order:
            mine = tuple(stride[row].tolist())
            rank = (-round(float(needed[row]), 3), prod(mine), max(mine), float(off[rows_[row]]))
            ranked.append((rank, tuple(kernels[rows_[row]].tolist()), mine, tiling))
    ranked.sort(key=lambda one: one[0])
    chosen: dict[tuple, Tiling] = {}  # of tilings that do equally well for a kernel and stride, one is enough
    for _, k, s, tiling in ranked:
        chosen.setdefault((k, s), tiling)
    results = []
    for (k, s), tiling in list(chosen.items())[:top]:
        problem = Problem(tuple(size), k, s, tuple(dilation), tuple(causal))
        results.append(simulate(problem, tiling, full(problem) if full else None))
    return results
