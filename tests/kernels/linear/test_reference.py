"""The reference is the definition: it must be right, differentiable twice, injective, and linear in the tokens."""
import random

import pytest
import torch

from visionattn.kernels import linear_attention
from visionattn.kernels.linear import reference


def _case(seed: int):
    """A drawn case: odd, rectangular, batch 1, with and without a residual and tokens before its map."""
    r = random.Random(seed)
    height, width = r.randint(1, 6), r.randint(1, 6)
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 2), d=r.choice((8, 9, 16)),
                 dv=r.choice((8, 11)), device="cpu", taps=r.random() < 0.7)
    before = r.choice((0, 0, 1, 3))
    if before:
        shape |= dict(height=1, width=before + height * width)
    return shape, (height, width)


def _call(q, k, v, taps=None, grid=None, scale=None):
    return linear_attention(q, k, v, None if taps is None else taps.movedim(-1, 2), grid, scale)


def _by_loop(q, k, v, taps, grid, scale):
    """One token, and one neighbour, after another."""
    batch, height, width, heads, _ = q.shape
    n, (rows, columns) = height * width, grid
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    out = torch.zeros_like(v)
    for i in range(n):
        products = torch.einsum("bhd,bjhd->bhj", q[:, i], k)
        weights = scale / n * products - scale / n * products.mean(-1, keepdim=True) + 1 / n
        out[:, i] = torch.einsum("bhj,bjhd->bhd", weights, v)
        y, x = divmod(i - (n - rows * columns), columns)
        if taps is None or y < 0:
            continue
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if 0 <= y + dy < rows and 0 <= x + dx < columns:
                    out[:, i] += taps[:, :, dy + 1, dx + 1] * v[:, i + dy * columns + dx]
    return out.view(batch, height, width, heads, -1)


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_equals_a_loop_over_tokens_in_both_orders(first, linear_drawn, linear_eager, monkeypatch):
    for seed in range(first, first + 40):
        shape, grid = _case(seed)
        tensors = linear_drawn(**shape)
        expected = _by_loop(tensors["q"], tensors["k"], tensors["v"], tensors.get("taps"), grid, 0.3)
        case = f"case {seed}: {grid} {shape}"
        eager = linear_eager(**tensors, grid=grid, scale=0.3)
        torch.testing.assert_close(eager, expected, rtol=0, atol=1e-12, msg=case)
        for scores in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(reference, "scores_first", lambda *_, scores=scores: scores)
                found = _call(**tensors, grid=grid, scale=0.3)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=case)


@pytest.mark.parametrize("tokens, d, dv", [(49, 32, 32), (31, 32, 32), (32, 32, 32), (49, 64, 64), (20, 16, 32)])
def test_the_order_of_the_products_is_the_cheaper_one(tokens, d, dv):
    from torch.utils.flop_counter import FlopCounterMode
    q, k, v = (torch.zeros(1, 1, tokens, 1, n) for n in (d, d, dv))
    with FlopCounterMode(display=False) as counter:
        linear_attention(q, k, v)
    assert counter.get_total_flops() == 2 * tokens * min(tokens * (d + dv), 2 * d * dv)


def test_work_grows_linearly_with_the_map():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (28, 56):
        x = torch.zeros(1, side, side, 1, 8)
        with FlopCounterMode(display=False) as counter:
            linear_attention(x, x, x, torch.zeros(1, 1, 8, 3, 3))
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]


GRADCHECKS = [((2, 3), None, True), ((3, 2), None, False), ((1, 5), (2, 2), True), ((4, 4), None, True)]


@pytest.mark.parametrize("size, grid, taps", GRADCHECKS)
def test_gradcheck_and_gradgradcheck_through_q_k_v_and_the_residual(size, grid, taps, linear_drawn):
    tensors = linear_drawn(1, *size, 1, 8, 9, "cpu", taps)
    tensors = [x.requires_grad_() for x in tensors.values()]

    def call(*x):
        return _call(*x, grid=grid) if taps else _call(*x, None, grid)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, linear_drawn, linear_eager, rule):
    rule(_call, linear_drawn(2, 9, 7, 2, 32, 24, "cpu"), dtype, linear_eager)


def _weights(q, k):
    """What every token gives to the others' output: InLine's op on values that are a key's own axis each."""
    n = k.shape[2]
    return linear_attention(q, k, torch.eye(n, dtype=q.dtype).view(1, 1, n, 1, n))[0, 0, :, 0]


def _plain_linear_weights(q, k, phi):
    """The weights of plain linear attention: phi(q) . phi(k) over their sum."""
    products = phi(q[0, 0, :, 0]) @ phi(k[0, 0, :, 0]).T
    return products / products.sum(1, keepdim=True)


@pytest.mark.parametrize("phi", [torch.relu, torch.abs], ids=["relu", "absolute"])
@pytest.mark.parametrize("seed", range(10))
def test_distinct_collinear_queries_get_the_same_plain_weights_but_not_the_same_injective_ones(seed, phi):
    torch.manual_seed(seed)
    direction, n, d = torch.randn(16, dtype=torch.float64), 12, 16
    lengths = 1 + torch.rand(n, dtype=torch.float64).cumsum(0)
    assert (lengths.diff() > 1e-3).all(), "lengths that are hardly distinct"
    q = (lengths[:, None] * direction).view(1, 1, n, 1, d)
    k = torch.randn(1, 1, n, 1, d, dtype=torch.float64)
    plain, injective = _plain_linear_weights(q, k, phi), _weights(q, k)
    assert torch.allclose(plain, plain[:1].expand_as(plain), rtol=0, atol=1e-12)
    distances = torch.cdist(injective, injective)
    shortest = (lengths[:, None] - lengths).abs() + torch.eye(n)
    ratios = distances / shortest                     # the weights are affine in the length
    others = ~torch.eye(n, dtype=torch.bool)
    assert (ratios[others] > 1e-3).all()
    assert torch.allclose(ratios[others], ratios[0, 1].expand_as(ratios[others]), rtol=1e-6)
    for weights in (plain, injective):
        assert torch.allclose(weights.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-12)


def test_tokens_before_the_map_attend_but_have_no_neighbours(linear_drawn):
    tensors = linear_drawn(1, 1, 7, 1, 8, 8, "cpu")
    bare = _call(tensors["q"], tensors["k"], tensors["v"])
    found = _call(**tensors, grid=(2, 3))
    assert torch.equal(found[:, :, :1], bare[:, :, :1]) and not torch.equal(found[:, :, 1:], bare[:, :, 1:])
    changed = tensors["v"].clone()
    changed[:, :, 0] += 1
    moved = _call(tensors["q"], tensors["k"], changed, tensors["taps"], (2, 3)) - found
    assert (moved != 0).all()
