"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood.geometry import make_geometry

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, kernel, dilation, stride, bias, dtype
CASES = {
    "square": (1, 8, 8, 1, 32, 32, 7, 1, 1, True, SINGLE),
    "rectangle": (2, 7, 12, 1, 32, 32, 3, 1, 1, True, HALF),
    "ragged": (1, 11, 6, 2, 24, 24, 5, 1, 1, False, BRAIN),
    "one-window": (2, 7, 7, 2, 32, 32, 7, 1, 1, True, BRAIN),
    "one-window-a-group": (1, 6, 6, 1, 32, 32, 3, 2, 1, True, SINGLE),
    "dilation-not-dividing": (1, 9, 7, 1, 16, 16, 3, 2, 1, True, SINGLE),
    "seven": (1, 9, 11, 1, 16, 16, 7, 1, 1, True, HALF),
    "stride-two": (1, 10, 9, 1, 16, 16, (5, 7), 1, 2, True, BRAIN),
    "even-kernel": (1, 8, 9, 1, 16, 16, 4, 1, 1, True, SINGLE),
    "per-axis": (1, 6, 13, 1, 8, 8, (3, 6), (2, 1), (1, 4), True, SINGLE),
    "stride": (1, 10, 9, 1, 32, 32, 5, 1, 3, True, HALF),
    "blocked": (1, 8, 12, 1, 32, 32, 4, 1, 4, True, BRAIN),
    "kernel-1": (1, 5, 4, 1, 8, 8, 1, 1, 1, True, SINGLE),
    "other-dv": (1, 8, 7, 1, 24, 40, 3, 1, 1, True, SINGLE),
    "wide": (2, 13, 14, 1, 16, 16, 11, 1, 1, True, HALF),
    "wide-plain": (1, 13, 14, 1, 16, 16, 13, 1, 1, False, BRAIN),
    "wide-stride": (1, 13, 15, 1, 16, 16, 12, 1, 6, True, BRAIN),
    "wide-power-of-two": (1, 9, 19, 1, 16, 16, (8, 16), 1, (1, 8), True, HALF),
    "wide-dilation": (1, 11, 24, 2, 16, 16, (3, 11), (2, 2), 1, True, BRAIN),
    "shared-windows": (1, 9, 19, 2, 16, 16, (8, 16), 1, 8, False, HALF),
    "shared-windows-dilation": (2, 17, 19, 1, 24, 40, (8, 16), (2, 1), (8, 16), False, BRAIN),
    "shared-map": (2, 8, 16, 1, 16, 16, (8, 16), 1, 1, False, BRAIN),
    "shared-windows-single": (1, 9, 17, 1, 16, 16, (8, 16), 1, (4, 8), False, SINGLE),
    "shared-windows-d128": (2, 9, 18, 2, 128, 128, (8, 16), 1, (8, 16), False, HALF),
    "wide-d128": (2, 4, 12, 2, 128, 128, (3, 10), 1, 1, False, HALF),
    "d8": (1, 7, 8, 1, 8, 8, 3, 1, 1, False, HALF),
    "d48": (1, 7, 6, 1, 48, 48, 3, 1, 2, True, BRAIN),
    "d64": (1, 7, 9, 1, 64, 64, 5, 1, 1, True, HALF),
    "d128": (1, 5, 6, 1, 128, 128, 3, 1, 1, True, BRAIN),
    "d256": (1, 4, 5, 1, 256, 256, 3, 1, 1, False, SINGLE),
    "d256-bias": (1, 9, 10, 1, 256, 256, 5, 1, 1, True, SINGLE),
}
EVERY = [(d, kernel, dilation, stride, dtype) for d in (8, 24, 32, 48, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for kernel, dilation, stride in (((7, 7), 1, 1), ((5, 6), 2, 1), ((7, 7), 1, 4), ((4, 3), (1, 3), (4, 2)))]


def _both(to_all, kernel, dilation, stride, d):
    geometry = make_geometry(kernel, dilation, stride)

    def function(q, k, v, bias=None):
        return neighborhood_attention(q, k, v, kernel, dilation, stride, bias)

    def eager(q, k, v, bias=None):
        return to_all(q, k, v, bias, geometry, d**-0.5)

    return geometry, function, eager


@pytest.mark.parametrize("case", CASES)
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, drawn, to_all, rule):
    batch, height, width, heads, d, dv, kernel, dilation, stride, bias, dtype = CASES[case]
    geometry, function, eager = _both(to_all, kernel, dilation, stride, d)
    rule(function, drawn(batch, height, width, heads, d, dv, geometry.kernel if bias else None, fused), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, kernel, dilation, stride, dtype", EVERY, ids=str)
def test_obeys_the_rule_at_every_dimension_and_dtype(d, kernel, dilation, stride, dtype, fused, poisoned, drawn,
                                                     to_all, rule):
    geometry, function, eager = _both(to_all, kernel, dilation, stride, d)
    height, width = (k * dil + extra for k, dil, extra in zip(geometry.kernel, geometry.dilation, (3, 6), strict=True))
    rule(function, drawn(2, height, width, 2, d, d, geometry.kernel, fused), dtype, eager)


@pytest.mark.parametrize("case", ["even-kernel", "stride", "one-window"])
def test_repeats_are_bitwise_equal(case, fused, drawn, results):
    batch, height, width, heads, d, dv, kernel, dilation, stride, _, dtype = CASES[case]
    tensors = drawn(batch, height, width, heads, d, dv, (kernel, kernel), fused)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    grad = torch.randn(batch, height, width, heads, dv, device=fused, dtype=dtype)

    def call(q, k, v, bias):
        return neighborhood_attention(q, k, v, kernel, dilation, stride, bias)

    first, second = (results(call, tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kernel, causal, dtype", [(5, False, HALF), (5, True, HALF),
                                                   (5, False, SINGLE), (4, False, SINGLE)])
def test_nothing_around_the_table_is_read(kernel, causal, dtype, fused, drawn, results):
    size = (kernel + 4, kernel + 5) if kernel > 4 else (4, 4)              # tiles reach beyond both
    tensors = drawn(1, *size, 1, 16, 16, (kernel, kernel), fused)
    tensors = {name: x.float() if name == "bias" else x.to(dtype) for name, x in tensors.items()}
    table = tensors["bias"]
    grad = torch.randn(1, *size, 1, 16, device=fused, dtype=dtype)
    among_nan = torch.full((table.numel() + 4096,), torch.nan, device=fused)
    among_nan[2048:-2048] = table.flatten()

    def call(q, k, v, bias):
        return neighborhood_attention(q, k, v, kernel, bias=bias, is_causal=causal)

    expected = results(call, tensors, grad)
    for name, value in results(call, tensors | {"bias": among_nan[2048:-2048].view_as(table)}, grad).items():
        assert torch.equal(value, expected[name]), name


def test_packed_equals_separate_bit_for_bit(fused, poisoned, drawn, results):
    tensors = {name: x.float() for name, x in drawn(2, 5, 4, 2, 16, 16, (2, 3), fused).items()}
    bias, grad = tensors.pop("bias"), torch.randn(2, 5, 4, 2, 16, device=fused)
    apart = results(lambda q, k, v, bias: neighborhood_attention(q, k, v, (2, 3), bias=bias),
                    tensors | {"bias": bias}, grad)
    packed = results(lambda qkv, bias: neighborhood_attention_packed(qkv, (2, 3), bias=bias),
                     {"qkv": torch.stack(list(tensors.values()), 3), "bias": bias}, grad)
    assert torch.equal(packed["out"], apart["out"])
    assert torch.equal(packed["dbias"], apart["dbias"])
    assert packed["dqkv"].is_contiguous()
    assert torch.equal(packed["dqkv"], torch.stack([apart["dq"], apart["dk"], apart["dv"]], 3))


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(2, 9, 6, 3, 4, 16, device=fused)
    grad = torch.randn(2, 4, 6, 2, 16, device=fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    plain = {name: x.contiguous() for name, x in slices.items()}

    def call(q, k, v):
        return neighborhood_attention(q, k, v, 3)

    expected = results(call, plain, grad)
    for tensors in (slices, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain, torch.ones((), device=fused).expand(grad.shape))   # what out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


def test_batch_equals_its_images_one_by_one(fused, results):
    qkv, grad = torch.randn(3, 6, 5, 3, 1, 16, device=fused), torch.randn(3, 6, 5, 1, 16, device=fused)
    whole = results(lambda qkv: neighborhood_attention_packed(qkv, 3), {"qkv": qkv}, grad)
    for i in range(3):
        one = results(lambda qkv: neighborhood_attention_packed(qkv, 3), {"qkv": qkv[i:i + 1]}, grad[i:i + 1])
        assert torch.equal(one["out"], whole["out"][i:i + 1])
        assert torch.equal(one["dqkv"], whole["dqkv"][i:i + 1])


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_any_scale(scale, fused, poisoned, drawn, to_all, rule):
    geometry = make_geometry(3)
    rule(lambda q, k, v, bias: neighborhood_attention(q, k, v, 3, bias=bias, scale=scale),
         drawn(6, 5, 6, 1, 16, 16, (3, 3), fused), SINGLE,      # so many that the largest error is no matter of luck
         lambda q, k, v, bias: to_all(q, k, v, bias, geometry, scale))


def test_large_logits_do_not_overflow(fused, poisoned):
    q = 60 * torch.randn(1, 6, 6, 1, 16, device=fused)
    out = neighborhood_attention(q, q, torch.randn_like(q), 3, bias=1e4 * torch.randn(1, 5, 5, device=fused))
    assert out.isfinite().all()


def test_an_empty_batch(fused, results):
    found = results(lambda qkv, bias: neighborhood_attention_packed(qkv, 3, bias=bias),
                    {"qkv": torch.empty(0, 5, 5, 3, 2, 16, device=fused), "bias": torch.randn(2, 5, 5, device=fused)},
                    torch.empty(0, 5, 5, 2, 16, device=fused))
    assert found["out"].shape == (0, 5, 5, 2, 16)
    assert not found["dbias"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 5, 5, 1, 16, device=fused) for _ in range(3))
    bias = torch.randn(1, 5, 5, device=fused, requires_grad=True)
    neighborhood_attention(q, k.requires_grad_(), v, 3, bias=bias).sum().backward()
    assert q.grad is None and v.grad is None
    assert k.grad is not None and bias.grad is not None


def test_a_graph_of_the_gradient_equals_the_references(fused, drawn, to_all):
    tensors = [x.float().requires_grad_() for x in drawn(1, 4, 5, 1, 8, 8, (3, 3), fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    actual = penalty(lambda q, k, v, bias: neighborhood_attention(q, k, v, 3, bias=bias))
    expected = penalty(lambda q, k, v, bias: to_all(q, k, v, bias, make_geometry(3), 8**-0.5))
    for name, x, y in zip(("q", "k", "v", "bias"), actual, expected, strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_only_windows_that_a_tile_shares_in_whole_chunks_go_unmasked():
    tile, chunk = (8, 8), (4, 16)
    assert make_geometry((8, 16), 1, 8).is_shared(20, 30, tile, chunk)
    assert make_geometry((8, 16), (2, 3), (8, 8)).is_shared(20, 60, tile, chunk)
    assert make_geometry((8, 16)).is_shared(8, 16, tile, chunk)                            # all of the map
    assert not make_geometry((8, 16)).is_shared(8, 17, tile, chunk)
    assert not make_geometry((8, 16), (1, 2)).is_shared(8, 32, tile, chunk)                # a group's end is a tile's
    assert not make_geometry((8, 16), 1, (8, 4)).is_shared(20, 30, tile, chunk)            # a tile has two windows
    assert not make_geometry((8, 18), 1, 8).is_shared(20, 30, tile, chunk)                 # a chunk reaches beyond one
    assert not make_geometry((8, 16), 1, 8, (True, False)).is_shared(20, 30, tile, chunk)
