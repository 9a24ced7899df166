"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import explain, varied_window_attention, varied_window_attention_packed
from visionattn.kernels.window.geometry import make_geometry

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, window, bias, spread, dtype
CASES = {
    "small": (1, 4, 4, 2, 16, 16, 2, "table", 1.0, SINGLE),
    "vsa": (1, 14, 14, 1, 32, 32, 7, "table", 1.0, BRAIN),
    "at-themselves": (1, 6, 3, 1, 16, 16, 3, "table", 0.0, SINGLE),
    "ragged": (1, 3, 5, 2, 16, 16, 4, "table", 1.0, SINGLE),
    "map-smaller-than-window": (1, 3, 5, 2, 16, 16, 7, "table", 1.0, SINGLE),
    "far-away": (1, 8, 4, 1, 16, 16, 4, "table", 3.0, SINGLE),
    "all-pairs": (1, 6, 6, 2, 16, 16, 3, True, 0.5, HALF),
    "no-bias": (1, 8, 4, 1, 16, 16, 4, False, 1.0, BRAIN),
    "per-axis": (1, 9, 10, 1, 16, 16, (2, 5), "table", 1.0, SINGLE),
    "other-dv": (1, 6, 6, 2, 16, 40, 3, "table", 1.0, SINGLE),
    "one-position": (1, 3, 4, 1, 8, 8, 1, "table", 2.0, SINGLE),
    "64-positions": (1, 8, 9, 1, 16, 16, 8, "table", 1.0, BRAIN),
    "many-windows": (1, 24, 24, 1, 8, 8, 2, False, 2.0, SINGLE),      # more than the last pass looks at at a time
    "d24": (1, 7, 7, 1, 24, 24, 4, "table", 1.0, HALF),
    "d64": (1, 7, 8, 1, 64, 64, 7, "table", 1.0, HALF),
    "d128": (1, 4, 5, 1, 128, 128, 4, "table", 1.0, BRAIN),
}
EVERY = [(d, window, bias, dtype) for d in (8, 24, 32, 48, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for window, bias in ((7, "table"), ((3, 5), True)) if d <= 64 or dtype != SINGLE]
SLOW = ("small", "map-smaller-than-window", "all-pairs", "per-axis", "other-dv", "one-position", "64-positions",
        "many-windows", "d24", "d64", "d128")


def _both(eager, window, scale):
    geometry = make_geometry(window)

    def function(q, k, v, sampling, bias=None):
        return varied_window_attention(q, k, v, window, sampling, bias, scale)

    return geometry, function, lambda q, k, v, sampling, bias=None: eager(q, k, v, sampling, bias, geometry, scale)


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, varied_drawn, varied_eager, rule):
    *shape, window, bias, spread, dtype = CASES[case]
    geometry, function, eager = _both(varied_eager, window, shape[4] ** -0.5)
    rule(function, varied_drawn(*shape, geometry, fused, bias, spread), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, window, bias, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, window, bias, dtype, fused, poisoned, varied_drawn,
                                                           varied_eager, rule):
    geometry, function, eager = _both(varied_eager, window, d**-0.5)
    rule(function, varied_drawn(2, 9, 13, 2, d, d, geometry, fused, bias), dtype, eager)


@pytest.mark.parametrize("case", ["far-away", pytest.param("small", marks=pytest.mark.slow)])
def test_repeats_are_bitwise_equal(case, fused, varied_drawn, results):
    *shape, window, bias, spread, dtype = CASES[case]
    tensors = varied_drawn(*shape, make_geometry(window), fused, bias, spread)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    grad = torch.randn_like(tensors["v"])
    first, second = (results(lambda q, k, v, sampling, bias: varied_window_attention(q, k, v, window, sampling, bias),
                             tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_packed_equals_separate_bit_for_bit(fused, poisoned, varied_drawn, results):
    tensors = {name: x.float() for name, x in varied_drawn(1, 7, 3, 2, 16, 16, make_geometry(4), fused).items()}
    grad = torch.randn_like(tensors["v"])
    apart = results(lambda q, k, v, sampling, bias: varied_window_attention(q, k, v, 4, sampling, bias), tensors, grad)
    qkv = torch.stack([tensors.pop(name) for name in "qkv"], 3)
    packed = results(lambda qkv, sampling, bias: varied_window_attention_packed(qkv, 4, sampling, bias),
                     {"qkv": qkv} | tensors, grad)
    assert torch.equal(packed["dqkv"], torch.stack([apart[f"d{name}"] for name in "qkv"], 3))
    assert packed["dqkv"].is_contiguous()
    for name in ("out", "dsampling", "dbias"):
        assert torch.equal(packed[name], apart[name]), name


@pytest.mark.slow
def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(1, 9, 3, 3, 4, 16, device=fused)
    grad, places = torch.randn(1, 4, 3, 2, 16, device=fused), torch.randn(1, 2, 1, 2, 4, device=fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    turned["sampling"] = places.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    plain = {name: x.contiguous() for name, x in slices.items()}

    def call(q, k, v, sampling):
        return varied_window_attention(q, k, v, 3, sampling)

    expected = results(call, plain | {"sampling": places}, grad)
    for tensors in (slices | {"sampling": places}, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain | {"sampling": places}, torch.ones((), device=fused).expand(grad.shape))
    assert all(x.isfinite().all() for x in expanded.values())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_any_scale(scale, fused, poisoned, varied_drawn, varied_eager, rule):
    geometry, function, eager = _both(varied_eager, 3, scale)
    rule(function, varied_drawn(2, 5, 3, 1, 16, 16, geometry, fused), SINGLE, eager)


@pytest.mark.parametrize("far", [pytest.param(1e6, marks=pytest.mark.slow), -3e9, float("inf")])
def test_places_however_far_read_zeros_and_get_no_gradient(far, fused, poisoned):
    q, v = torch.randn(1, 4, 4, 1, 16, device=fused), torch.ones(1, 4, 4, 1, 16, device=fused, requires_grad=True)
    places = torch.zeros(1, 2, 2, 1, 4, device=fused)
    places[:, 0, 0, :, 1] = far
    places.requires_grad_()
    out = varied_window_attention(q, q, v, 2, places)
    out.sum().backward()
    assert not out[:, :2, :2].any() and not places.grad[:, 0, 0].any()
    assert not v.grad[:, :2, :2].any() and v.grad[:, 2:].abs().sum() > 0 and places.grad.isfinite().all()


def test_large_logits_do_not_overflow(fused, poisoned):
    q, places = 60 * torch.randn(1, 4, 4, 1, 16, device=fused), torch.randn(1, 2, 2, 1, 4, device=fused)
    assert varied_window_attention(q, q, torch.randn_like(q), 3, places).isfinite().all()


def test_an_empty_batch(fused, results):
    q, places = torch.empty(0, 5, 5, 2, 16, device=fused), torch.empty(0, 2, 2, 2, 4, device=fused)
    found = results(lambda q, k, v, sampling, bias: varied_window_attention(q, k, v, 3, sampling, bias),
                    dict(q=q, k=q, v=q, sampling=places, bias=torch.randn(2, 5, 5, device=fused)), q)
    assert found["out"].shape == found["dq"].shape == q.shape and found["dsampling"].shape == places.shape
    assert not found["dbias"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 4, 4, 1, 16, device=fused) for _ in range(3))
    places, bias = torch.randn(1, 2, 2, 1, 4, device=fused), torch.randn(1, 3, 3, device=fused)
    varied_window_attention(q, k.requires_grad_(), v, 2, places, bias.requires_grad_()).sum().backward()
    assert q.grad is None and v.grad is None and places.grad is None
    assert k.grad is not None and bias.grad is not None


@pytest.mark.slow
def test_a_graph_of_the_gradient_equals_the_references(fused, varied_drawn, varied_eager):
    geometry, function, eager = _both(varied_eager, 2, 0.5)
    names, tensors = zip(*varied_drawn(1, 4, 3, 1, 8, 8, geometry, fused).items(), strict=True)
    tensors = [x.float().requires_grad_() for x in tensors]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip(names, penalty(function), penalty(eager), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_explains_which_runs(fused):
    q, places = torch.zeros(1, 2, 2, 1, 8, device=fused), torch.zeros(1, 1, 1, 1, 4, device=fused)
    assert explain("varied_window_attention", q, q, q, 7, places).runs == "fused (triton)"
    for d, dtype, most in ((136, HALF, 128), (72, SINGLE, 64)):
        wide = torch.zeros(1, 2, 2, 1, d, device=fused, dtype=dtype)
        said = explain("varied_window_attention", wide, wide, wide, 7, places)
        assert said.runs == "reference" and f"head dimension {d} is over {most}, the most in {dtype}" in str(said)
