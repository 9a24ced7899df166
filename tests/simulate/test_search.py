"""The best stride and tiles: against trying everything, and what the ranking promises."""

from itertools import product
from math import prod

import pytest

from visionattn.simulate import Problem, Tiling, search, simulate


def kept_share(result):
    return round(result.speedup / result.flop_speedup, 3)


@pytest.mark.parametrize("causal", [(False, False), (True, False)])
@pytest.mark.parametrize("static", [False, True])
def test_for_a_kernel_no_stride_and_tiling_of_these_sizes_is_better(static, causal):
    size, kernel = (16, 16), (6, 8)
    found = search.best(size, search.tilings(16, 8, size, static), kernel=kernel, causal=causal)
    tilings = [Tiling(tile, chunk, static) for tile in ((1, 16), (2, 8), (4, 4), (8, 2), (16, 1))
               for chunk in ((1, 8), (2, 4), (4, 2), (8, 1))]  # fmt: skip
    everything = [simulate(Problem.make(size, kernel, stride, causal=causal), tiling)
                  for stride in product(range(1, 7), range(1, 9)) for tiling in tilings]  # fmt: skip
    assert kept_share(found[0]) == max(map(kept_share, everything))
    assert [kept_share(r) for r in found] == sorted(map(kept_share, found), reverse=True)
    assert {r.problem.kernel for r in found} == {kernel} and {r.tiling for r in found} <= set(tilings)
    assert len({r.problem.stride for r in found}) == len(found)


def test_for_a_sparsity_the_first_settings_are_perfect_and_aim_at_it():
    found = search.best((64, 64), search.tilings(64, 64, (64, 64)), sparsity=0.75, tolerance=0.02, top=5)
    assert len(found) == 5
    for result in found:
        assert abs(result.sparsity - 0.75) <= 0.02
        assert result.block_sparse and result.speedup == pytest.approx(result.flop_speedup)
    sharing = [prod(result.problem.stride) for result in found]
    assert sharing == sorted(sharing)


def test_the_papers_stride_is_found_for_its_map_and_tiles():
    tiling = Tiling((4, 8, 8), (2, 8, 8), static=True)
    best = search.best((30, 48, 80), [tiling], kernel=(18, 24, 24))[0]
    assert best.block_sparse and best.problem.stride == (16, 8, 8)


def test_tiles_may_depend_on_the_kernel_and_full_attention_has_its_own():
    narrow, wide = Tiling((8,), (8,)), Tiling((8,), (16,))
    found = search.best((64,), lambda kernel: [narrow if kernel[0] <= 16 else wide], sparsity=0.75, tolerance=0.1,
                        full=lambda problem: wide)  # fmt: skip
    assert {result.tiling for result in found} == {narrow, wide}
    assert all((result.problem.kernel[0] <= 16) == (result.tiling == narrow) for result in found)
    assert {result.full_tiling for result in found} == {wide}


def test_long_axes_are_searched_in_steps_and_still_find_a_perfect_setting():
    best = search.best((1 << 16,), search.tilings(128, 128, (1 << 16,)), sparsity=0.9)[0]
    assert best.block_sparse and abs(best.sparsity - 0.9) <= 0.01


def test_shapes_of_tiles_are_the_boxes_of_powers_of_two_that_the_map_has_room_for():
    assert search.shapes(8, (64, 3)) == [(2, 4), (4, 2), (8, 1)]
    with pytest.raises(ValueError, match="tile size must be a power of two that fits the map, got 48"):
        search.tilings(48, 64, (64, 64))
    with pytest.raises(ValueError, match="chunk size must be a power of two that fits the map, got 64"):
        search.tilings(16, 64, (4, 8))


def test_a_sparsity_that_no_kernel_leaves_is_refused():
    with pytest.raises(ValueError, match="no kernel on 4x4 leaves a sparsity of 0.99"):
        search.best((4, 4), search.tilings(4, 4, (4, 4)), sparsity=0.99)
