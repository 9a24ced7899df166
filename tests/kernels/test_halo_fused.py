"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import halo_attention, halo_attention_packed_kv
from visionattn.kernels.halo.geometry import make_geometry

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, block, halo, stride, dtype
CASES = {
    "small": (2, 8, 8, 2, 16, 16, 4, 1, 1, SINGLE),
    "halonet": (1, 16, 16, 1, 32, 32, 8, 3, 1, BRAIN),
    "halonet-strided": (1, 8, 16, 1, 32, 32, 8, 2, 2, BRAIN),
    "shifted-tiles-of-keys": (1, 24, 8, 1, 16, 16, 8, 3, 1, HALF),
    "other-dv": (1, 8, 6, 2, 16, 40, 4, 2, 1, SINGLE),
    "ragged": (2, 7, 9, 1, 16, 16, 4, 1, 1, SINGLE),
    "ragged-strided": (1, 7, 10, 1, 16, 16, 4, 1, 2, SINGLE),
    "per-axis": (1, 9, 8, 1, 16, 16, (3, 4), (1, 0), (1, 2), SINGLE),
    "map-smaller-than-block": (2, 3, 5, 1, 16, 16, 8, 3, 1, SINGLE),
    "halo-larger-than-block": (1, 6, 5, 1, 16, 16, 2, 3, 1, SINGLE),
    "no-halo": (1, 8, 6, 1, 16, 16, 4, 0, 1, BRAIN),
    "one-position": (1, 3, 4, 1, 8, 8, 1, 1, 1, SINGLE),
    "paper-h3": (1, 10, 10, 1, 16, 16, 10, 3, 1, HALF),
    "paper-h5": (1, 14, 9, 1, 16, 40, 14, 2, 1, BRAIN),
    "d8": (1, 8, 7, 1, 8, 8, 4, 2, 1, HALF),
    "d48": (1, 5, 7, 1, 48, 48, 5, 1, 1, BRAIN),
    "d64": (1, 8, 9, 1, 64, 64, 8, 1, 1, HALF),
    "d128": (1, 4, 5, 1, 128, 128, 4, 1, 1, BRAIN),
    "d256": (1, 4, 3, 1, 256, 256, 2, 1, 2, SINGLE),
}
EVERY = [(d, block, halo, stride, dtype) for d in (8, 24, 32, 48, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for block, halo, stride in ((8, 3, 1), (4, 2, 2), (6, 1, (1, 3)))]


def _both(halo_all, block, halo, stride, scale):
    geometry = make_geometry(block, halo, stride)

    def function(q, k, v, rel_h, rel_w):
        return halo_attention(q, k, v, block, halo, rel_h, rel_w, stride, scale)

    def eager(q, k, v, rel_h, rel_w):
        return halo_all(q, k, v, rel_h, rel_w, geometry, scale)

    return geometry, function, eager


SLOW = ("shifted-tiles-of-keys", "other-dv", "no-halo", "paper-h3", "d8", "d48", "d128", "d256")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, halo_drawn, halo_all, rule):
    *shape, block, halo, stride, dtype = CASES[case]
    geometry, function, eager = _both(halo_all, block, halo, stride, shape[4] ** -0.5)
    rule(function, halo_drawn(*shape, geometry, fused), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, block, halo, stride, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, block, halo, stride, dtype, fused, poisoned, halo_drawn,
                                                           halo_all, rule):
    geometry, function, eager = _both(halo_all, block, halo, stride, d**-0.5)
    rule(function, halo_drawn(2, 9, 13, 2, d, d, geometry, fused), dtype, eager)


@pytest.mark.parametrize("case", ["small", "ragged-strided"])
def test_repeats_are_bitwise_equal(case, fused, halo_drawn, results):
    *shape, block, halo, stride, dtype = CASES[case]
    geometry = make_geometry(block, halo, stride)
    tensors = {name: x.to(dtype) for name, x in halo_drawn(*shape, geometry, fused).items()}
    grad = torch.randn(*tensors["q"].shape[:4], shape[5], device=fused, dtype=dtype)

    def call(q, k, v, rel_h, rel_w):
        return halo_attention(q, k, v, block, halo, rel_h, rel_w, stride)

    first, second = (results(call, tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("dv", [16, 24])
def test_packed_equals_separate_bit_for_bit(dv, fused, poisoned, halo_drawn, results):
    geometry = make_geometry(4, 1, 2)
    tensors = {name: x.float() for name, x in halo_drawn(2, 7, 8, 2, 16, dv, geometry, fused).items()}
    grad = torch.randn(2, 4, 4, 2, dv, device=fused)
    apart = results(lambda q, k, v, rel_h, rel_w: halo_attention(q, k, v, 4, 1, rel_h, rel_w, 2), tensors, grad)
    k, v = tensors.pop("k"), tensors.pop("v")
    packed = results(lambda q, rel_h, rel_w, kv: halo_attention_packed_kv(q, kv, 4, 1, rel_h, rel_w, 2),
                     tensors | {"kv": torch.cat((k, v), -1)}, grad)
    assert torch.equal(packed["dkv"], torch.cat((apart["dk"], apart["dv"]), -1)) and packed["dkv"].is_contiguous()
    for name in ("out", "dq", "drel_h", "drel_w"):
        assert torch.equal(packed[name], apart[name]), name


def test_rows_that_no_pair_reads_get_no_gradient(fused, halo_drawn, results):
    tensors = {name: x.float() for name, x in halo_drawn(1, 8, 8, 1, 16, 16, make_geometry(4, 2), fused).items()}
    found = results(lambda q, k, v, rel_h, rel_w: halo_attention(q, k, v, 4, 2, rel_h, rel_w), tensors,
                    torch.randn(1, 8, 8, 1, 16, device=fused))
    for name in ("drel_h", "drel_w"):
        assert not found[name][:4].any() and found[name][4:].abs().sum(1).all()


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(2, 9, 6, 3, 4, 16, device=fused)
    grad, table = torch.randn(2, 4, 6, 2, 16, device=fused), torch.randn(9, 16, device=fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    plain = {name: x.contiguous() for name, x in slices.items()}

    def call(q, k, v):
        return halo_attention(q, k, v, 3, 1, table, table)

    expected = results(call, plain, grad)
    for tensors in (slices, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain, torch.ones((), device=fused).expand(grad.shape))   # what out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_any_scale(scale, fused, poisoned, halo_drawn, halo_all, rule):
    geometry, function, eager = _both(halo_all, 3, 1, 1, scale)
    rule(function, halo_drawn(6, 5, 6, 1, 16, 16, geometry, fused), SINGLE, eager)


def test_large_logits_do_not_overflow(fused, poisoned):
    q, table = 60 * torch.randn(1, 6, 7, 1, 16, device=fused), 60 * torch.randn(9, 16, device=fused)
    assert halo_attention(q, q, torch.randn_like(q), 3, 1, table, table).isfinite().all()


def test_an_empty_batch(fused, results):
    q, table = torch.empty(0, 5, 5, 2, 16, device=fused), torch.randn(9, 16, device=fused)
    found = results(lambda q, k, v, rel_h: halo_attention(q, k, v, 3, 1, rel_h, table),
                    dict(q=q, k=q, v=q, rel_h=table), torch.empty(0, 5, 5, 2, 16, device=fused))
    assert found["out"].shape == found["dq"].shape == q.shape
    assert not found["drel_h"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 5, 5, 1, 16, device=fused) for _ in range(3))
    rel_h, rel_w = torch.randn(2, 9, 16, device=fused).unbind(0)
    halo_attention(q, k.requires_grad_(), v, 3, 1, rel_h, rel_w.requires_grad_()).sum().backward()
    assert q.grad is None and v.grad is None and rel_h.grad is None
    assert k.grad is not None and rel_w.grad is not None


def test_a_graph_of_the_gradient_equals_the_references(fused, halo_drawn, halo_all):
    geometry, function, eager = _both(halo_all, 3, 1, 1, 0.5)
    tensors = [x.float().requires_grad_() for x in halo_drawn(1, 4, 5, 1, 8, 8, geometry, fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip(("q", "k", "v", "rel_h", "rel_w"), penalty(function), penalty(eager), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name
