"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import explain, routed_attention, routed_attention_packed, routed_attention_packed_qk

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, regions, topk, kind of routes, dtype
CASES = {
    "small": (2, 4, 6, 1, 16, 16, (2, 2), 2, "distinct", SINGLE),
    "4-tokens": (1, 6, 8, 1, 32, 32, (3, 4), 8, "distinct", BRAIN),
    "16-tokens": (1, 12, 12, 1, 32, 32, (3, 3), 4, "distinct", BRAIN),
    "64-tokens": (1, 16, 16, 1, 32, 32, (2, 2), 1, "distinct", HALF),
    "25-tokens": (1, 10, 15, 1, 32, 32, (2, 3), 3, "distinct", BRAIN),
    "100-tokens": (1, 10, 20, 1, 16, 16, (1, 2), 1, "any", HALF),
    "other-dv": (1, 6, 6, 2, 16, 40, (2, 3), 2, "distinct", SINGLE),
    "nobody-routes-to-most": (1, 6, 8, 1, 16, 16, (3, 4), 2, "popular", SINGLE),
    "repeats": (2, 4, 6, 1, 16, 16, (2, 2), 3, "any", SINGLE),
    "ragged": (1, 13, 11, 1, 16, 16, (4, 3), 3, "any", BRAIN),
    "regions-outside-the-map": (1, 8, 5, 1, 16, 16, (7, 3), 2, "any", SINGLE),
    "one-region": (2, 5, 7, 1, 16, 16, (1, 1), 1, "distinct", SINGLE),
    "many-routes": (1, 5, 7, 1, 8, 8, (5, 1), 300, "any", HALF),
    "d8": (1, 6, 6, 1, 8, 8, (3, 2), 2, "distinct", HALF),
    "d48": (1, 5, 7, 1, 48, 48, (2, 2), 2, "distinct", BRAIN),
    "d64": (1, 8, 9, 1, 64, 64, (2, 3), 2, "distinct", HALF),
    "d128": (1, 4, 6, 1, 128, 128, (2, 2), 2, "distinct", BRAIN),
    "d256": (1, 4, 3, 1, 256, 256, (2, 1), 1, "distinct", SINGLE),
}
QUICK = ("small", "4-tokens", "64-tokens", "25-tokens", "repeats", "ragged", "regions-outside-the-map", "d48")
EVERY = [(d, size, topk, dtype) for d in (8, 24, 32, 48, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for size, topk in (((9, 13), 3), ((20, 11), 2))]


def _both(routed_all, routes, regions, scale):
    def function(q, k, v):
        return routed_attention(q, k, v, routes, regions, scale)

    def eager(q, k, v):
        return routed_all(q, k, v, routes, regions, scale)

    return function, eager


def _drawn(case, fused, drawn, routes_drawn):
    *shape, regions, topk, kind, dtype = CASES[case]
    return drawn(*shape, None, fused), routes_drawn(shape[0], regions, topk, kind, fused), regions, dtype


@pytest.mark.parametrize("case", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, drawn, routes_drawn, routed_all, rule):
    tensors, routes, regions, dtype = _drawn(case, fused, drawn, routes_drawn)
    function, eager = _both(routed_all, routes, regions, 0.25)
    rule(function, tensors, dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, size, topk, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, size, topk, dtype, fused, poisoned, drawn, routes_drawn,
                                                           routed_all, rule):
    function, eager = _both(routed_all, routes_drawn(2, (3, 2), topk, "distinct", fused), (3, 2), d**-0.5)
    rule(function, drawn(2, *size, 2, d, d, None, fused), dtype, eager)


@pytest.mark.parametrize("case", ["small", pytest.param("repeats", marks=pytest.mark.slow)])
def test_repeats_are_bitwise_equal(case, fused, drawn, routes_drawn, results):
    tensors, routes, regions, dtype = _drawn(case, fused, drawn, routes_drawn)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    grad = torch.randn_like(tensors["v"])
    first, second = (results(lambda q, k, v: routed_attention(q, k, v, routes, regions), tensors, grad)
                     for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_packed_equals_separate_bit_for_bit(fused, poisoned, drawn, routes_drawn, results):
    tensors = {name: x.float() for name, x in drawn(1, 5, 6, 2, 16, 16, None, fused).items()}
    routes, grad = routes_drawn(1, (3, 1), 2, "distinct", fused), torch.randn(1, 5, 6, 2, 16, device=fused)
    apart = results(lambda q, k, v: routed_attention(q, k, v, routes, (3, 1)), tensors, grad)
    packed = results(lambda qkv: routed_attention_packed(qkv, routes, (3, 1)),
                     dict(qkv=torch.stack(list(tensors.values()), 3)), grad)
    assert torch.equal(packed["out"], apart["out"]) and packed["dqkv"].is_contiguous()
    assert torch.equal(packed["dqkv"], torch.stack([apart[name] for name in ("dq", "dk", "dv")], 3))
    v = tensors.pop("v")
    packed = results(lambda qk, v: routed_attention_packed_qk(qk, v, routes, (3, 1)),
                     dict(qk=torch.stack(list(tensors.values()), 3), v=v), grad)
    assert torch.equal(packed["out"], apart["out"]) and torch.equal(packed["dv"], apart["dv"])
    assert torch.equal(packed["dqk"], torch.stack([apart["dq"], apart["dk"]], 3)) and packed["dqk"].is_contiguous()


def test_regions_that_nobody_routes_to_get_no_gradient(fused, poisoned, results):
    q, k, v, grad = torch.randn(4, 1, 4, 4, 1, 16, device=fused).unbind(0)
    routes = torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]], device=fused)
    found = results(lambda q, k, v: routed_attention(q, k, v, routes, 2), dict(q=q, k=k, v=v), grad)
    for name in ("dk", "dv"):
        assert not found[name][:, 2:].any() and found[name][:, :2].abs().sum(-1).all()


def test_tokens_that_see_nothing_get_zeros(fused, poisoned, results):
    q, k, v, grad = torch.randn(4, 1, 4, 4, 1, 16, device=fused).unbind(0)
    routes = torch.tensor([[[2, 2], [2, 1], [0, 0], [0, 0], *[[0, 0]] * 5]], device=fused)      # 3 x 3; 2 lies outside
    found = results(lambda q, k, v: routed_attention(q, k, v, routes, 3), dict(q=q, k=k, v=v), grad)
    assert not found["out"][:, :2, :2].any() and not found["dq"][:, :2, :2].any()
    assert found["out"][:, :2, 2:].abs().sum(-1).all() and all(x.isfinite().all() for x in found.values())


@pytest.mark.parametrize("dtype", [torch.int32, pytest.param(torch.int64, marks=pytest.mark.slow)])
def test_routes_of_either_width_and_any_strides(dtype, fused, poisoned, drawn, routes_drawn, results):
    tensors = {name: x.float() for name, x in drawn(1, 6, 6, 1, 16, 16, None, fused).items()}
    routes, grad = routes_drawn(1, (3, 3), 4, "any", fused), torch.randn(1, 6, 6, 1, 16, device=fused)
    expected = results(lambda q, k, v: routed_attention(q, k, v, routes, 3), tensors, grad)
    spread = torch.full((1, 9, 8), 99, device=fused, dtype=dtype)
    spread[:, :, ::2] = routes
    found = results(lambda q, k, v: routed_attention(q, k, v, spread[:, :, ::2], 3), tensors, grad)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_a_number_far_outside_counts_as_the_nearest(fused, results):
    x, grad = torch.randn(2, 1, 4, 4, 1, 16, device=fused).unbind(0)
    far, near = (torch.tensor(r, device=fused).expand(1, 4, 4)
                 for r in ([2**32, -2**31, 2**32 + 1, 2**62], [3, 0, 3, 3]))
    found, expected = (results(lambda q, k, v, r=r: routed_attention(q, k, v, r, 2), dict(q=x, k=x, v=x), grad)
                       for r in (far, near))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, routes_drawn, results):
    wide = torch.randn(1, 9, 6, 3, 4, 16, device=fused)
    grad, routes = torch.randn(1, 4, 6, 2, 16, device=fused), routes_drawn(1, (2, 1), 2, "distinct", fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    plain = {name: x.contiguous() for name, x in slices.items()}

    def call(q, k, v):
        return routed_attention(q, k, v, routes, (2, 1))

    expected = results(call, plain, grad)
    for tensors in (slices, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain, torch.ones((), device=fused).expand(grad.shape))   # what out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


def test_batch_equals_its_images_one_by_one(fused, routes_drawn, results):
    qkv, grad = torch.randn(2, 4, 5, 3, 1, 16, device=fused), torch.randn(2, 4, 5, 1, 16, device=fused)
    routes = routes_drawn(2, (2, 1), 2, "any", fused)
    whole = results(lambda qkv: routed_attention_packed(qkv, routes, (2, 1)), {"qkv": qkv}, grad)
    for i in range(2):
        one = results(lambda qkv, r=routes[i:i + 1]: routed_attention_packed(qkv, r, (2, 1)), {"qkv": qkv[i:i + 1]},
                      grad[i:i + 1])
        assert torch.equal(one["out"], whole["out"][i:i + 1])
        assert torch.equal(one["dqkv"], whole["dqkv"][i:i + 1])


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_any_scale(scale, fused, poisoned, drawn, routes_drawn, routed_all, rule):
    function, eager = _both(routed_all, routes_drawn(4, (2, 1), 2, "distinct", fused), (2, 1), scale)
    rule(function, drawn(4, 5, 6, 1, 16, 16, None, fused), SINGLE, eager)


def test_large_logits_do_not_overflow(fused, poisoned, routes_drawn):
    q = 60 * torch.randn(1, 6, 7, 1, 16, device=fused)
    assert routed_attention(q, q, torch.randn_like(q), routes_drawn(1, (2, 2), 2, "any", fused), 2).isfinite().all()


def test_an_empty_batch(fused, results):
    q, routes = torch.empty(0, 5, 5, 2, 16, device=fused), torch.empty(0, 4, 1, device=fused, dtype=torch.long)
    found = results(lambda q, k, v: routed_attention(q, k, v, routes, 2), dict(q=q, k=q, v=q), torch.empty_like(q))
    assert found["out"].shape == found["dq"].shape == q.shape


def test_only_what_is_asked_for_gets_a_gradient(fused, routes_drawn):
    q, k, v = (torch.randn(1, 5, 5, 1, 16, device=fused) for _ in range(3))
    routed_attention(q, k.requires_grad_(), v, routes_drawn(1, (2, 2), 2, "any", fused), 2).sum().backward()
    assert q.grad is None and v.grad is None and k.grad is not None


def test_a_graph_of_the_gradient_equals_the_references(fused, drawn, routes_drawn, routed_all):
    function, eager = _both(routed_all, routes_drawn(1, (2, 2), 2, "any", fused), (2, 2), 0.5)
    tensors = [x.float().requires_grad_() for x in drawn(1, 4, 5, 1, 8, 8, None, fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip("qkv", penalty(function), penalty(eager), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_explain_says_that_it_runs(fused, routes_drawn):
    qkv = torch.randn(1, 4, 4, 3, 1, 16, device=fused)
    assert explain("routed_attention_packed", qkv, routes_drawn(1, (2, 2), 1, "any", fused), 2).runs == "fused (triton)"
