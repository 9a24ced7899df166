"""The model's counts against every pair of a query and a key written out, and against the figures of the GNA paper."""

import random
from itertools import product
from math import prod

import pytest

from visionattn.simulate import Problem, Tiling, simulate


def seen(n, position, kernel, stride, dilation, causal):
    """The numbers, within its dilation group, that a position sees along an axis, as the definition words it."""
    length, i = len(range(position % dilation, n, dilation)), position // dilation
    first = i // stride * stride
    sharing = range(first, min(first + stride, length))
    if causal:
        return [j for j in range(length) if sharing[-1] - kernel < j <= i]
    leader = min(first + stride // 2, length - 1)
    start = min(max(leader - kernel // 2, 0), length - kernel)
    return list(range(start, start + kernel))


def by_enumeration(problem, tiling):
    """(tiles, visited, busiest, attended pairs, whether no query meets a key that it does not see)."""
    axes = list(zip(problem.size, problem.kernel, problem.stride, problem.dilation, problem.causal))
    windows = {}
    for query in product(*map(range, problem.size)):
        keys = [seen(n, at, *rest) for at, (n, *rest) in zip(query, axes)]
        group = tuple(at % d for at, d in zip(query, problem.dilation))
        tile = tuple(at // d // t for at, d, t in zip(query, problem.dilation, tiling.tile))
        windows.setdefault((group, tile), []).append(set(product(*keys)))
    counts, perfect = [], True
    for mine in windows.values():
        keys = set().union(*mine)
        origin = (0,) * len(axes) if tiling.static else tuple(map(min, zip(*keys)))
        chunks = {tuple((at - o) // c for at, o, c in zip(key, origin, tiling.chunk)) for key in keys}
        counts.append(len(chunks))
        perfect &= all(len(window) == len(chunks) * prod(tiling.chunk) for window in mine)
    pairs = sum(len(window) for mine in windows.values() for window in mine)
    return len(counts), sum(counts), max(counts), pairs, perfect


def drawn(axes, seed):
    """A problem and a tiling of up to a few hundred positions."""
    pick = random.Random(f"{axes} {seed}")
    size = [pick.randint(1, {1: 60, 2: 13, 3: 7}[axes]) for _ in range(axes)]
    dilation = [pick.randint(1, min(3, n)) for n in size]
    kernel = [pick.randint(1, n // d) for n, d in zip(size, dilation)]
    stride = [pick.randint(1, k) for k in kernel]
    causal = [pick.random() < 0.3 for _ in size]
    tile, chunk = ([pick.choice((1, 2, 3, 4, 8)) for _ in size] for _ in range(2))
    return Problem.make(size, kernel, stride, dilation, causal), Tiling(tuple(tile), tuple(chunk), seed % 2 == 1)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_counts_are_those_of_every_pair_written_out(axes, seed):
    problem, tiling = drawn(axes, seed)
    tiles, visited, busiest, pairs, perfect = by_enumeration(problem, tiling)
    _, full_visited, full_busiest, everything, _ = by_enumeration(problem.full, tiling)
    result = simulate(problem, tiling)
    assert (result.tiles, result.visited, result.busiest, result.block_sparse) == (tiles, visited, busiest, perfect)
    assert everything == prod(problem.size) ** 2
    assert result.flop_speedup == pytest.approx(everything / pairs)
    assert result.sparsity == pytest.approx(1 - pairs / everything)
    assert result.speedup == pytest.approx(full_visited / visited)
    assert result.worst_tile_speedup == pytest.approx(full_busiest / busiest)
    assert result.wasted == pytest.approx(1 - pairs / (visited * tiling.product))


def test_cases_with_and_without_waste_are_both_drawn():
    found = {simulate(*drawn(axes, seed)).block_sparse for axes in (1, 2, 3) for seed in range(30)}
    assert found == {True, False}


# Hunyuan's map of tokens under 91 % and 4K images under 90 % sparsity: the strides, and the speed-ups of whole models
# by FLOPs and by the paper's own simulator, where attention takes this share of the time (tables 1, 2, 4, figure 3).
VIDEO = ((30, 48, 80), (18, 24, 24), Tiling((4, 8, 8), (2, 8, 8), static=True), 0.607, 2.23)
IMAGE = ((256, 256), (80, 80), Tiling((16, 16), (16, 8), static=True), 0.518, 1.88)
PUBLISHED = [
    (VIDEO, (1, 1, 1), 1.73), (VIDEO, (2, 1, 1), 1.78), (VIDEO, (1, 1, 8), 1.99), (VIDEO, (2, 1, 8), 2.02),
    (VIDEO, (1, 8, 8), 2.17), (VIDEO, (2, 8, 8), 2.20), (VIDEO, (16, 8, 8), 2.23),
    (IMAGE, (1, 1), 1.76), (IMAGE, (16, 1), 1.84), (IMAGE, (16, 16), 1.88),
]  # fmt: skip


@pytest.mark.parametrize("use, stride, simulated", PUBLISHED, ids=lambda value: str(value)[:12])
def test_agrees_with_the_published_simulator(use, stride, simulated):
    size, kernel, tiling, share, by_flops = use
    result = simulate(Problem.make(size, kernel, stride), tiling)

    for speedup, published in ((result.worst_tile_speedup, simulated), (result.flop_speedup, by_flops)):
        whole_model = 1 / (1 - share + share / speedup)
        assert abs(whole_model - published) <= 0.01  # both the share and the figures are rounded; rows differ by more
    assert result.block_sparse == (simulated == by_flops)


def test_the_papers_rule_for_dynamic_chunks_holds():
    # "T_KV evenly divides the window, and T_Q evenly divides the stride"
    for kernel, stride, tile, chunk in product((8, 12, 16), (2, 3, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8)):
        if kernel % chunk == 0 and stride % tile == 0 and 48 % stride == 0:
            result = simulate(Problem.make(48, kernel, stride), Tiling((tile,), (chunk,)))
            assert result.block_sparse and result.wasted == 0, (kernel, stride, tile, chunk)
            assert result.speedup == pytest.approx(result.flop_speedup)


def test_one_masked_pair_is_not_perfect():
    perfect = Problem.make((32, 32), 16, 8)
    assert simulate(perfect, Tiling((8, 8), (4, 16))).block_sparse
    for other in (Problem.make((32, 32), (16, 15), 8), Problem.make((32, 32), 16, (8, 7)),
                  Problem.make((32, 32), 16, 8, causal=(False, True))):  # fmt: skip
        assert not simulate(other, Tiling((8, 8), (4, 16))).block_sparse


def test_no_setting_beats_its_flops_where_full_attention_wastes_nothing():
    for kernel, stride in product((1, 7, 16, 31, 32), (1, 3, 7)):
        if stride <= kernel:
            result = simulate(Problem.make((32, 32), kernel, stride), Tiling((8, 8), (4, 16)))
            assert result.worst_tile_speedup <= result.speedup * (1 + 1e-12)
            assert result.speedup <= result.flop_speedup * (1 + 1e-12)


BAD = {
    "four axes": (lambda: Problem.make((2, 2, 2, 2), 1), "map must have 1 to 3 axes, got 2x2x2x2"),
    "kernel of two axes": (lambda: Problem.make((8, 8, 8), (3, 3)), "kernel must be one number or 3"),
    "kernel beyond the map": (lambda: Problem.make((8, 6), 7), "kernel must lie between 1 and map // dilation = 6"),
    "dilated kernel": (lambda: Problem.make(16, 7, dilation=3), "map // dilation = 5, got 7 on axis 0"),
    "stride": (lambda: Problem.make(16, 7, 8), "stride must lie between 1 and kernel = 7, got 8"),
    "dilation": (lambda: Problem.make(16, 7, 1, 0), "dilation must be at least 1"),
    "causal": (lambda: Problem.make((8, 8), 3, causal=(True,)), "causal must have one entry an axis of the map, 2"),
    "empty map": (lambda: Problem.make((0, 3), 1), "map must be at least 1 on every axis, got 0 on axis 0"),
    "tile": (lambda: Tiling((8, 0), (8, 8)), "tile must be at least 1 on every axis, got 8x0"),
    "tile's axes": (lambda: simulate(Problem.make((8, 8), 3), Tiling((8,), (8, 8))), "tile must have 2 axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_defined_is_refused_by_name(name):
    make, message = BAD[name]
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
