"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import window_attention, window_attention_packed, window_attention_packed_kv
from visionattn.kernels.window.geometry import make_geometry

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, window, shift, partition, shared query, bias, dtype
CASES = {
    "blocks": (2, 8, 8, 2, 32, 32, 4, 0, "block", False, True, SINGLE),
    "swin": (1, 14, 14, 1, 32, 32, 7, 3, "block", False, "table", BRAIN),
    "plain": (1, 6, 9, 2, 24, 24, 3, 0, "block", False, False, BRAIN),
    "shift-per-axis": (2, 8, 9, 1, 16, 16, (4, 3), (1, 2), "block", False, "table", HALF),
    "ragged": (1, 9, 7, 1, 16, 16, 4, 0, "block", False, True, SINGLE),
    "ragged-shift": (2, 9, 11, 1, 16, 16, 4, (2, 3), "block", False, "table", SINGLE),
    "map-smaller-than-window": (2, 3, 5, 1, 16, 16, 7, (3, 4), "block", False, "table", SINGLE),
    "grid": (1, 8, 12, 2, 32, 32, 4, 0, "grid", False, "table", HALF),
    "ragged-grid": (2, 9, 7, 1, 16, 16, (4, 3), 0, "grid", False, True, SINGLE),
    "shared": (2, 8, 8, 2, 32, 32, 4, 0, "block", True, True, BRAIN),
    "shared-ragged": (2, 9, 7, 1, 16, 16, 4, 0, "block", True, True, SINGLE),
    "shared-grid": (1, 7, 8, 1, 16, 24, (4, 3), 0, "grid", True, "table", SINGLE),
    "wide": (1, 20, 9, 1, 32, 32, (10, 9), (4, 3), "block", False, "table", SINGLE),
    "wide-half": (2, 12, 24, 1, 32, 32, 12, 0, "block", False, "table", HALF),
    "wide-ragged-grid": (1, 13, 11, 1, 16, 16, (9, 10), 0, "grid", False, True, SINGLE),
    "wide-shared": (2, 11, 18, 1, 16, 16, (9, 10), 0, "block", True, "table", SINGLE),
    "wide-shared-grid": (1, 11, 18, 1, 16, 16, (9, 10), 0, "grid", True, False, BRAIN),
    "one-position": (1, 3, 4, 1, 8, 8, 1, 0, "block", False, "table", SINGLE),
    "window-2": (1, 5, 6, 1, 16, 16, 2, 1, "block", False, True, SINGLE),
    "oblong": (1, 6, 24, 1, 16, 16, (3, 12), (0, 5), "block", False, "table", SINGLE),
    "other-dv": (1, 8, 7, 1, 24, 40, 4, 1, "block", False, "table", SINGLE),
    "d8": (1, 8, 7, 1, 8, 8, 4, 2, "block", False, False, HALF),
    "d48": (1, 7, 7, 1, 48, 48, 5, 2, "block", False, True, BRAIN),
    "d64": (1, 8, 9, 1, 64, 64, 4, 2, "block", False, "table", HALF),
    "d128": (1, 6, 5, 1, 128, 128, 4, 1, "block", False, "table", BRAIN),
    "d256": (1, 4, 5, 1, 256, 256, 3, 0, "grid", True, "table", SINGLE),
}
EVERY = [(d, window, shift, partition, shared, dtype) for d in (8, 24, 32, 48, 64, 128)
         for dtype in (HALF, BRAIN, SINGLE)
         for window, shift, partition, shared in (((7, 7), 3, "block", False), ((5, 6), 0, "block", True),
                                                  ((4, 3), 0, "grid", False), ((10, 8), (3, 5), "block", False))]


def _both(windows_all, window, shift, partition, d):
    geometry = make_geometry(window, shift, partition)

    def function(q, k, v, bias=None):
        return window_attention(q, k, v, window, shift, partition, bias)

    def eager(q, k, v, bias=None):
        return windows_all(q, k, v, bias, geometry, d**-0.5)

    return geometry, function, eager


SLOW = ("shift-per-axis", "ragged-grid", "shared-ragged", "wide-ragged-grid", "wide-shared-grid", "d8", "d48", "d128")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, windows_drawn, windows_all, rule):
    batch, height, width, heads, d, dv, window, shift, partition, shared, bias, dtype = CASES[case]
    geometry, function, eager = _both(windows_all, window, shift, partition, d)
    rule(function, windows_drawn(batch, height, width, heads, d, dv, geometry, fused, bias, shared), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, window, shift, partition, shared, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, window, shift, partition, shared, dtype, fused, poisoned,
                                                           windows_drawn, windows_all, rule):
    geometry, function, eager = _both(windows_all, window, shift, partition, d)
    height, width = (w + extra for w, extra in zip(geometry.window, (3, 6), strict=True))
    rule(function, windows_drawn(2, height, width, 2, d, d, geometry, fused, "table", shared), dtype, eager)


@pytest.mark.parametrize("case", ["swin", "shared-ragged", "wide", "ragged-grid"])
def test_repeats_are_bitwise_equal(case, fused, windows_drawn, results):
    batch, height, width, heads, d, dv, window, shift, partition, shared, bias, dtype = CASES[case]
    geometry = make_geometry(window, shift, partition)
    tensors = windows_drawn(batch, height, width, heads, d, dv, geometry, fused, bias, shared)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    grad = torch.randn(tensors["v"].shape, device=fused, dtype=dtype)

    def call(q, k, v, bias):
        return window_attention(q, k, v, window, shift, partition, bias)

    first, second = (results(call, tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("window, size", [
    pytest.param((2, 3), (5, 4), id="small"), pytest.param((9, 8), (9, 10), id="wide", marks=pytest.mark.slow)])
def test_packed_equals_separate_bit_for_bit(window, size, fused, poisoned, windows_drawn, results):
    geometry = make_geometry(window, 1)
    tensors = {name: x.float() for name, x in windows_drawn(2, *size, 2, 16, 16, geometry, fused).items()}
    bias, grad = tensors.pop("bias"), torch.randn(2, *size, 2, 16, device=fused)
    q, k, v = tensors.values()
    apart = results(lambda q, k, v, bias: window_attention(q, k, v, window, 1, bias=bias),
                    tensors | {"bias": bias}, grad)
    packed = results(lambda qkv, bias: window_attention_packed(qkv, window, 1, bias=bias),
                     {"qkv": torch.stack((q, k, v), 3), "bias": bias}, grad)
    half = results(lambda q, kv, bias: window_attention_packed_kv(q, kv, window, 1, bias=bias),
                   {"q": q, "kv": torch.stack((k, v), 3), "bias": bias}, grad)
    assert torch.equal(packed["dqkv"], torch.stack([apart["dq"], apart["dk"], apart["dv"]], 3))
    assert torch.equal(half["dkv"], torch.stack([apart["dk"], apart["dv"]], 3))
    assert torch.equal(half["dq"], apart["dq"])
    for found in (packed, half):
        assert torch.equal(found["out"], apart["out"])
        assert torch.equal(found["dbias"], apart["dbias"])
    assert packed["dqkv"].is_contiguous() and half["dkv"].is_contiguous()


def test_a_shared_query_equals_its_copies_in_every_window(fused, results):
    q, k, v = torch.randn(2, 4, 4, 1, 16, device=fused), *torch.randn(2, 2, 8, 12, 1, 16, device=fused)
    grad = torch.randn(2, 8, 12, 1, 16, device=fused)
    shared = results(lambda q, k, v: window_attention(q, k, v, 4), dict(q=q, k=k, v=v), grad)
    copies = results(lambda q, k, v: window_attention(q.repeat(1, 2, 3, 1, 1), k, v, 4), dict(q=q, k=k, v=v), grad)
    for name in ("out", "dk", "dv"):
        assert torch.equal(shared[name], copies[name]), name
    assert (shared["dq"] - copies["dq"]).norm() <= 1e-6 * copies["dq"].norm()


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(2, 9, 6, 3, 4, 16, device=fused)
    grad = torch.randn(2, 4, 6, 2, 16, device=fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    plain = {name: x.contiguous() for name, x in slices.items()}

    def call(q, k, v):
        return window_attention(q, k, v, 3, 1)

    expected = results(call, plain, grad)
    for tensors in (slices, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain, torch.ones((), device=fused).expand(grad.shape))   # what out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


@pytest.mark.parametrize("window, size", [((2, 3), (5, 7)), ((9, 8), (9, 10))], ids=["closed", "open"])
@pytest.mark.parametrize("dtype", [SINGLE, BRAIN, HALF], ids=str)
def test_a_table_with_heads_last_is_read_in_place_and_gives_the_same_bits(window, size, dtype, fused, poisoned,
                                                                          windows_drawn, results):
    from visionattn.kernels.window.fused import _bias

    geometry = make_geometry(window, 1)
    tensors = windows_drawn(1, *size, 3, 16, 16, geometry, fused, "table")
    tensors = {name: x.float() for name, x in tensors.items()} | dict(bias=tensors["bias"].to(dtype))
    last = tensors["bias"].movedim(0, -1).contiguous().movedim(-1, 0)
    assert not last.is_contiguous() and _bias(tensors["q"], last, geometry, 1.0) is last
    grad = torch.randn(tensors["v"].shape, device=fused)

    def call(q, k, v, bias):
        return window_attention(q, k, v, window, 1, bias=bias)

    expected, found = results(call, tensors, grad), results(call, tensors | dict(bias=last), grad)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    if dtype != SINGLE:        # the numbers count, not how they are written
        for name, value in results(call, tensors | dict(bias=last.float()), grad).items():
            assert torch.equal(value.to(expected[name].dtype), expected[name]), name


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_any_scale(scale, fused, poisoned, windows_drawn, windows_all, rule):
    geometry = make_geometry(3, 1)
    rule(lambda q, k, v, bias: window_attention(q, k, v, 3, 1, bias=bias, scale=scale),
         windows_drawn(6, 5, 6, 1, 16, 16, geometry, fused), SINGLE,  # so many that the largest error is no luck
         lambda q, k, v, bias: windows_all(q, k, v, bias, geometry, scale))


def test_large_logits_do_not_overflow(fused, poisoned):
    q = 60 * torch.randn(1, 6, 7, 1, 16, device=fused)
    bias = 1e4 * torch.randn(1, 9, 9, device=fused)
    out = window_attention(q, q, torch.randn_like(q), 3, 1, bias=bias)
    assert out.isfinite().all()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_an_empty_batch(shared, fused, results):
    shape = (0, 3, 3, 2, 16) if shared else (0, 5, 5, 2, 16)
    found = results(lambda q, kv, bias: window_attention_packed_kv(q, kv, 3, bias=bias),
                    {"q": torch.empty(shape, device=fused), "kv": torch.empty(0, 5, 5, 2, 2, 16, device=fused),
                     "bias": torch.randn(2, 9, 9, device=fused)}, torch.empty(0, 5, 5, 2, 16, device=fused))
    assert found["out"].shape == (0, 5, 5, 2, 16) and found["dq"].shape == shape
    assert not found["dbias"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 5, 5, 1, 16, device=fused) for _ in range(3))
    bias = torch.randn(1, 9, 9, device=fused, requires_grad=True)
    window_attention(q, k.requires_grad_(), v, 3, bias=bias).sum().backward()
    assert q.grad is None and v.grad is None
    assert k.grad is not None and bias.grad is not None


def test_a_graph_of_the_gradient_equals_the_references(fused, windows_drawn, windows_all):
    geometry = make_geometry(3)
    tensors = windows_drawn(1, 4, 5, 1, 8, 8, geometry, fused, shared=True).values()
    tensors = [x.float().requires_grad_() for x in tensors]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    actual = penalty(lambda q, k, v, bias: window_attention(q, k, v, 3, bias=bias))
    expected = penalty(lambda q, k, v, bias: windows_all(q, k, v, bias, geometry, 8**-0.5))
    for name, x, y in zip(("q", "k", "v", "bias"), actual, expected, strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name
