"""The model of our own kernel: its counts are the steps that the kernel takes, and those that its index maps say."""

import pytest
import torch

pytest.importorskip("triton", reason="our kernel needs triton")

import triton
import triton.language as tl

from visionattn.kernels import _attend, _attend_closed, _host
from visionattn.kernels._launch import unspecialised
from visionattn.kernels.neighborhood import fused, maps
from visionattn.kernels.neighborhood.geometry import Geometry
from visionattn.simulate import Problem, ours
from visionattn.training.errors import UserError

# height, width, kernel, stride, dilation
WALKED = [
    ((16, 16), (7, 7), (1, 1), (1, 1)),
    ((13, 21), (5, 9), (2, 3), (1, 1)),
    ((18, 20), (12, 11), (1, 4), (1, 1)),
    ((16, 16), (16, 16), (1, 1), (1, 1)),
    ((17, 14), (4, 3), (4, 1), (2, 3)),
    ((14, 14), (7, 7), (1, 1), (2, 2)),  # each dilation group is one window: the closed kernel
    ((7, 7), (7, 7), (1, 1), (1, 1)),
]
LARGE = [
    ((56, 56), (7, 7), (1, 1), (1, 1)),
    ((128, 128), (32, 32), (16, 16), (1, 1)),
    ((128, 128), (128, 128), (1, 1), (1, 1)),
    ((96, 100), (31, 24), (5, 8), (1, 2)),
    ((200, 304), (13, 20), (3, 20), (4, 1)),
]


@pytest.mark.skipif(not _host.INTERPRETED, reason="steps are counted under Triton's interpreter")
@pytest.mark.parametrize("case, dtype", [*((case, "float16") for case in WALKED), (WALKED[1], "float32")], ids=str)
def test_the_kernel_takes_as_many_steps_as_the_model_counts(case, dtype, monkeypatch):
    size, kernel, stride, dilation = case
    steps = {"chunks": 0, "windows": 0}

    def counted(module, name, what):
        original = getattr(module, name)

        def call(*args, **kwargs):
            steps[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted(_attend, "_next_chunk", "chunks")  # once a chunk of an open tile
    counted(_attend_closed, "store_lse", "windows")  # once a window of the closed kernel, which is its one chunk
    x = torch.randn(1, *size, 1, 16, dtype=getattr(torch, dtype))
    fused.forward(x, x, x, None, Geometry(kernel, dilation, stride), 0.25)
    result = ours.simulate_ours(Problem.make(size, kernel, stride, dilation), head_dim=16, dtype=dtype)
    assert steps["chunks"] + steps["windows"] == result.visited > 0
    assert (steps["windows"] > 0) == (tuple(k * d for k, d in zip(kernel, dilation)) == size and max(kernel) <= 8)


@triton.jit
def _chunks_of_the_tiles(p_chunks, tiles, height, width, dil_y, dil_x, TILES: tl.constexpr, TH: tl.constexpr,
                         TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr, P: tl.constexpr):  # fmt: skip
    t = tl.arange(0, TILES)
    i0, j0, n_i, n_j, g = maps.locate(t, height, width, dil_y, dil_x, TH, TW, P)
    i_lo, i_hi, j_lo, j_hi = maps.key_span(i0, j0, n_i, n_j, g, TH, TW, P)
    chunks = tl.cdiv(i_hi - i_lo, CH) * tl.cdiv(j_hi - j_lo, CW)
    tl.store(p_chunks + t, tl.where((i0 < n_i) & (j0 < n_j), chunks, 0), mask=t < tiles)


CHUNKS = unspecialised(_chunks_of_the_tiles)


@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize("size, kernel, stride, dilation", WALKED + LARGE, ids=str)
def test_the_kernels_index_maps_give_the_models_counts(size, kernel, stride, dilation, head_dim, device):
    problem = Problem.make(size, kernel, stride, dilation)
    plan = fused._plan(Geometry(kernel, dilation, stride), *size, head_dim, head_dim, torch.bfloat16, False, 8, False)
    result = ours.simulate_ours(problem, head_dim)
    chunks = torch.zeros(plan.tiles, dtype=torch.int32, device=device)
    CHUNKS[(1,)](chunks, plan.tiles, *size, *dilation, triton.next_power_of_2(plan.tiles),
                 *result.tiling.tile, *result.tiling.chunk, P=plan.forward["P"])  # fmt: skip
    assert chunks.sum().item() == result.visited
    assert chunks.max().item() == result.busiest
    assert (chunks > 0).sum().item() == result.tiles


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [24, 64, 128, 256])
@pytest.mark.parametrize("kernel", [7, 13])
def test_the_tiles_are_those_that_are_launched(kernel, head_dim, dtype, bias, monkeypatch):
    launched = []
    monkeypatch.setattr(fused, "launch", lambda kernel, programs, constants, *args: launched.append(constants))
    x = torch.empty(1, 20, 24, 1, head_dim, dtype=getattr(torch, dtype))
    table = torch.zeros(1, 2 * kernel - 1, 2 * kernel - 1) if bias else None
    fused.forward(x, x, x, table, Geometry((kernel, kernel)), 0.25)
    tiling = ours.tiling(Problem.make((20, 24), kernel), head_dim, dtype, bias)
    (constants,) = launched
    assert tiling.tile == (constants["TH"], constants["TW"])
    assert tiling.chunk == (constants["CH"], constants["CW"])


def test_full_attention_is_our_kernel_over_the_whole_map():
    result = ours.simulate_ours(Problem.make((64, 64), 7))
    assert result.full_tiling == ours.tiling(Problem.make((64, 64), 64)) != result.tiling
    assert result.speedup == pytest.approx(64**4 / (result.visited * result.tiling.product))
    assert ours.simulate_ours(Problem.make((64, 64), 64)).speedup == 1


NOT_OURS = {
    "maps of 2 axes, not 1": Problem.make(64, 7),
    "no causal axes": Problem.make((8, 8), 3, causal=True),
}


@pytest.mark.parametrize("message, problem", NOT_OURS.items())
def test_what_our_kernel_does_not_compute_is_refused(message, problem):
    with pytest.raises(UserError, match=message):
        ours.tiling(problem)
