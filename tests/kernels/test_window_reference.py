"""The reference is the definition: it must be right, differentiable twice, and linear in the map."""
import random

import pytest
import torch

from visionattn.kernels.window import reference
from visionattn.kernels.window.geometry import make_geometry


def _case(seed: int):
    """A drawn case: odd, rectangular, batch 1; windows that do not divide the map, shifts per axis, shared queries."""
    r = random.Random(seed)
    window = (r.randint(1, 6), r.randint(1, 6)) if r.random() < 0.7 else (r.randint(2, 7),) * 2
    partition = r.choice(("block", "block", "grid"))
    shared = r.random() < 0.3
    shift = (0, 0)
    if partition == "block" and not shared and r.random() < 0.7:
        shift = tuple(r.randint(0, w - 1) for w in window)
    height, width = (r.choice((w * r.randint(1, 3), r.randint(1, 14))) for w in window)
    geometry = make_geometry(window, shift, partition)
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 3), d=r.choice((8, 9, 16)),
                 dv=r.choice((8, 11)), geometry=geometry, device="cpu", bias=r.choice((False, True, "table")),
                 shared=shared)
    return geometry, shape


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_equals_a_loop_over_positions(first, windows_drawn, windows_loop, windows_all, monkeypatch):
    for seed in range(first, first + 40):
        geometry, shape = _case(seed)
        tensors = windows_drawn(**shape)
        arguments = tensors["q"], tensors["k"], tensors["v"], tensors.get("bias"), geometry, 0.3
        expected = windows_loop(*arguments)
        case = f"case {seed}: {geometry} {shape}"
        torch.testing.assert_close(windows_all(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        torch.testing.assert_close(reference.window_attention(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # rows of windows one by one, which is for large maps
            patch.setattr(reference, "CHUNK", 1)
            chunked = reference.window_attention(*arguments)
        torch.testing.assert_close(chunked, expected, rtol=0, atol=1e-12, msg=case)


def test_the_pairs_counted_for_flops_are_those_that_attend():
    for seed in range(100):
        geometry, shape = _case(seed)
        x = torch.zeros(1, shape["height"], shape["width"], 1, 8, dtype=torch.float64)
        n = shape["height"] * shape["width"]
        eye = torch.eye(n, dtype=torch.float64).view(1, *x.shape[1:3], 1, n)
        weights = reference.window_attention(x, x, eye, None, geometry, 1.0)     # each key's own axis of values
        assert (weights > 0).sum() == geometry.pairs(shape["height"], shape["width"]), f"case {seed}: {geometry}"


def test_gradients_equal_the_dense_ones(windows_drawn, windows_all, results):
    for seed in range(1000, 1030):
        geometry, shape = _case(seed)
        tensors = windows_drawn(**shape)
        grad = torch.randn(tensors["v"].shape, dtype=torch.float64)

        def call(function, q, k, v, bias=None, geometry=geometry):
            return function(q, k, v, bias, geometry, 0.3)

        expected = results(lambda call=call, **x: call(windows_all, **x), tensors, grad)
        actual = results(lambda call=call, **x: call(reference.window_attention, **x), tensors, grad)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-11, msg=f"{name} of case {seed}")


GRADCHECKS = [((2, 3), (1, 2), "block", (4, 3), False), (2, 0, "grid", (3, 4), False), (2, 0, "block", (4, 3), True)]


@pytest.mark.parametrize("window, shift, partition, size, shared", GRADCHECKS)
def test_gradcheck_through_q_k_v_and_bias(window, shift, partition, size, shared, windows_drawn):
    geometry = make_geometry(window, shift, partition)
    tensors = windows_drawn(1, *size, 1, 8, 9, geometry, "cpu", "table" if shift else True, shared).values()
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *x: reference.window_attention(*x, geometry, 0.4), tensors)


@pytest.mark.parametrize("window, shift, partition, size, shared", GRADCHECKS)
def test_gradgradcheck_through_q_k_v_and_bias(window, shift, partition, size, shared, windows_drawn):
    geometry = make_geometry(window, shift, partition)
    tensors = windows_drawn(1, *size, 1, 8, 8, geometry, "cpu", "table" if shift else True, shared).values()
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradgradcheck(
        lambda *x: reference.window_attention(*x, geometry, 0.4), tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, windows_drawn, windows_all, rule):
    geometry = make_geometry(7, 3)

    def call(function):
        return lambda q, k, v, bias: function(q, k, v, bias, geometry, 32**-0.5)

    rule(call(reference.window_attention), windows_drawn(2, 19, 9, 2, 32, 24, geometry, "cpu"), dtype,
         call(windows_all))


def test_masked_positions_give_no_nan_in_any_gradient(windows_drawn):
    geometry = make_geometry(4, (3, 1))
    tensors = [x.requires_grad_() for x in windows_drawn(1, 6, 7, 2, 8, 8, geometry, "cpu").values()]
    out = reference.window_attention(*tensors, geometry, 1.0)
    once = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    twice = torch.autograd.grad(sum(x.square().sum() for x in once), tensors)
    assert all(x.isfinite().all() for x in (out, *once, *twice))


def test_work_grows_linearly_with_the_map():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (56, 112):
        x = torch.zeros(1, side, side, 1, 8)
        with FlopCounterMode(display=False) as counter:
            reference.window_attention(x, x, x, None, make_geometry(7), 1.0)
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]
