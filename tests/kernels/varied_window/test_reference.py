"""The reference is the definition: it must be right, differentiable twice, and linear in the map."""
import pytest
import torch

from visionattn.kernels.varied_window import reference
from visionattn.kernels.window import reference as windows
from visionattn.kernels.window.geometry import Geometry


def _run(function, tensors, geometry, scale=0.3):
    return function(**{"bias": None, **tensors}, geometry=geometry, scale=scale)


@pytest.mark.parametrize("first", range(0, 240, 60))
def test_equals_a_loop_over_windows_keys_and_queries(first, varied_case, varied_drawn, varied_loop, varied_eager,
                                                     monkeypatch):
    for seed in range(first, first + 60):
        geometry, shape = varied_case(seed)
        tensors = varied_drawn(**shape)
        expected, case = _run(varied_loop, tensors, geometry), f"case {seed}: {geometry} {shape}"
        for function in (varied_eager, reference.varied_window_attention):
            found = _run(function, tensors, geometry)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # rows of windows one by one, which is for large maps
            patch.setattr(reference, "CHUNK", 1)
            chunked = _run(reference.varied_window_attention, tensors, geometry)
        torch.testing.assert_close(chunked, expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # what graphs of symbolic sizes hold
            patch.setattr(windows, "_static", lambda *sizes: False)
            indexed = _run(reference.varied_window_attention, tensors, geometry)
        torch.testing.assert_close(indexed, expected, rtol=0, atol=1e-12, msg=case)


def test_gradients_equal_the_dense_ones(varied_case, varied_drawn, varied_eager, results):
    for seed in range(1000, 1030):
        geometry, shape = varied_case(seed)
        tensors = varied_drawn(**shape)
        grad = torch.randn(*tensors["v"].shape, dtype=torch.float64)
        expected, actual = (results(lambda f=f, g=geometry, **x: _run(f, x, g), tensors, grad)
                            for f in (varied_eager, reference.varied_window_attention))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-11, msg=f"{name} of case {seed}")


CHECKED = [((2, 3), (4, 3), "table"), ((2, 2), (3, 4), True), ((3, 1), (2, 3), False)]


@pytest.mark.parametrize("window, size, bias", CHECKED)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_through_q_k_v_the_places_and_the_bias(check, window, size, bias, varied_drawn):
    geometry = Geometry(window)
    tensors = varied_drawn(1, *size, 2, 8, 9, geometry, "cpu", bias, 0.7)
    names, leaves = list(tensors), [x.requires_grad_() for x in tensors.values()]

    def call(*values):
        return _run(reference.varied_window_attention, dict(zip(names, values, strict=True)), geometry, 0.4)

    assert check(call, leaves, fast_mode=True)


def test_zeros_give_window_attention_on_whole_maps(varied_drawn):
    geometry = Geometry((3, 4))
    tensors = varied_drawn(2, 6, 8, 2, 8, 8, geometry, "cpu", "table", 0.0)
    expected = windows.window_attention(*(tensors[name] for name in ("q", "k", "v", "bias")), geometry, 0.3)
    found = _run(reference.varied_window_attention, tensors, geometry)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_at_whole_positions_the_places_gradient_is_that_towards_the_greater_side(varied_drawn):
    geometry = Geometry((2, 2))
    tensors = varied_drawn(1, 4, 4, 1, 8, 8, geometry, "cpu", False, 0.0)
    grads, step = [], 1e-6
    for start in (0.0, step):
        sampling = (tensors["sampling"] + start).requires_grad_()
        out = _run(reference.varied_window_attention, tensors | {"sampling": sampling}, geometry)
        grads.append(torch.autograd.grad(out.square().sum(), sampling)[0])
    torch.testing.assert_close(grads[0][..., :2], grads[1][..., :2], rtol=1e-3, atol=1e-4)
    assert grads[0].abs().min() > 0


def test_keys_outside_the_map_take_weight_and_give_nothing():
    q, v = torch.zeros(1, 1, 1, 1, 8), torch.ones(1, 1, 1, 1, 8)
    for moved, share in ((0.0, 1 / 25), (-4.0, 1 / 25), (-3.5, 1 / 25), (0.75, 1 / 100), (1.0, 0.0)):
        places = torch.tensor([moved, 0.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
        out = reference.varied_window_attention(q, q, v, places, None, Geometry((5, 5)), 1.0)
        torch.testing.assert_close(out, torch.full_like(out, share))


@pytest.mark.parametrize("far", [1e4, -3e9, 1e30, float("inf")])
def test_places_however_far_read_zeros_and_get_no_gradient(far):
    q, v, places = torch.randn(1, 4, 4, 1, 8), torch.ones(1, 4, 4, 1, 8), torch.zeros(1, 2, 2, 1, 4)
    places[:, 0, 0, :, 1] = far
    places.requires_grad_()
    out = reference.varied_window_attention(q, q, v, places, None, Geometry((2, 2)), 1.0)
    out.sum().backward()
    assert not out[:, :2, :2].any() and not places.grad[:, 0, 0].any() and places.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, varied_drawn, varied_eager, rule):
    geometry = Geometry((7, 7))
    tensors = varied_drawn(1, 12, 9, 2, 32, 24, geometry, "cpu")
    rule(lambda **x: _run(reference.varied_window_attention, x, geometry, 32**-0.5), tensors, dtype,
                lambda **x: _run(varied_eager, x, geometry, 32**-0.5))


def test_the_pairs_counted_for_flops_are_the_keys_of_a_window_for_every_query():
    from visionattn.kernels.varied_window import _pairs
    shape = (2, 7, 9, 3, 16)
    assert _pairs(shape, shape, None, None, Geometry((4, 6)), 1.0) == 2 * 7 * 9 * 3 * 24


def test_work_grows_linearly_with_the_map():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (16, 32):
        x, places = torch.zeros(1, side, side, 1, 8), torch.zeros(1, side // 4, side // 4, 1, 4)
        with FlopCounterMode(display=False) as counter:
            reference.varied_window_attention(x, x, x, places, None, Geometry((4, 4)), 1.0)
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]
