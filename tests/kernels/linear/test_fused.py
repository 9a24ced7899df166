"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import explain, linear_attention, linear_attention_packed

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, heads, D, Dv, grid, residual, dtype
CASES = {
    "map": (1, 7, 7, 2, 32, 32, None, True, SINGLE),
    "brain": (1, 9, 8, 1, 32, 32, None, True, BRAIN),
    "half": (1, 8, 9, 1, 32, 32, None, True, HALF),
    "no-residual": (1, 5, 9, 2, 32, 32, None, False, BRAIN),
    "class-token": (2, 1, 37, 1, 32, 32, (4, 9), True, SINGLE),
    "many-tokens-before": (1, 1, 40, 1, 16, 16, (3, 5), True, SINGLE),
    "row": (1, 1, 40, 1, 16, 16, None, True, SINGLE),
    "column": (1, 40, 1, 1, 16, 16, None, True, SINGLE),
    "two-tokens": (1, 1, 2, 1, 16, 16, None, True, SINGLE),
    "other-dv": (2, 6, 5, 1, 24, 40, None, True, SINGLE),
    "d8": (2, 6, 7, 1, 8, 8, None, True, HALF),
    "d24": (1, 5, 7, 1, 24, 24, None, True, BRAIN),
    "d48": (2, 6, 6, 1, 48, 48, None, True, BRAIN),
    "d64": (2, 6, 5, 1, 64, 64, None, True, SINGLE),
}
SELDOM = ("half", "many-tokens-before", "row", "d48")     # cases much like others, left to the slow tests
WIDE = {
    "d80-dv72": (1, 4, 4, 1, 80, 72, None, True, SINGLE),
    "d128": (1, 6, 5, 1, 128, 128, None, True, BRAIN),
    "d80-dv200": (2, 5, 4, 1, 80, 200, None, True, SINGLE),
    "d256": (1, 4, 5, 1, 256, 256, None, False, HALF),
}
EVERY = [(d, size, grid, dtype) for d in (8, 24, 32, 48, 64, 128, 256) for dtype in (HALF, BRAIN, SINGLE)
         for size, grid in (((7, 10), None), ((1, 36), (5, 7)))]


def _call(q, k, v, taps=None, grid=None, scale=None):
    return linear_attention(q, k, v, None if taps is None else taps.movedim(-1, 2), grid, scale)


def _both(linear_eager, grid, scale=None):
    return (lambda **x: _call(**x, grid=grid, scale=scale)), (lambda **x: linear_eager(**x, grid=grid, scale=scale))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SELDOM else []) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, linear_drawn, linear_eager, rule):
    batch, height, width, heads, d, dv, grid, taps, dtype = CASES[case]
    function, eager = _both(linear_eager, grid)
    rule(function, linear_drawn(batch, height, width, heads, d, dv, fused, taps), dtype, eager)


@pytest.mark.parametrize(
    "case", ["d80-dv72", *(pytest.param(case, marks=pytest.mark.slow) for case in WIDE if case != "d80-dv72")])
def test_obeys_the_rule_for_wide_heads(case, fused, poisoned, linear_drawn, linear_eager, rule):
    batch, height, width, heads, d, dv, grid, taps, dtype = WIDE[case]
    function, eager = _both(linear_eager, grid)
    rule(function, linear_drawn(batch, height, width, heads, d, dv, fused, taps), dtype, eager)


@pytest.fixture
def short_slices(monkeypatch):
    """Slices of 64 tokens, so that maps of several of them are small."""
    pytest.importorskip("triton", reason="needs triton")
    from visionattn.kernels.linear import fused
    fused._plan.cache_clear()
    monkeypatch.setattr(fused, "SLICE", 64)
    yield
    fused._plan.cache_clear()


@pytest.mark.parametrize("d, taps, dtype", [(16, True, SINGLE), (16, False, SINGLE),
                                            pytest.param(16, True, BRAIN, marks=pytest.mark.slow),
                                            pytest.param(72, True, SINGLE, marks=pytest.mark.slow)])
def test_obeys_the_rule_over_several_slices(d, taps, dtype, short_slices, fused, poisoned, linear_drawn, linear_eager,
                                            rule):
    function, eager = _both(linear_eager, None)
    size = (7, 10)
    rule(function, linear_drawn(1, *size, 1, d, d, fused, taps), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, size, grid, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, size, grid, dtype, fused, poisoned, linear_drawn,
                                                           linear_eager, rule):
    function, eager = _both(linear_eager, grid)
    rule(function, linear_drawn(2, *size, 2, d, d, fused), dtype, eager)


@pytest.mark.parametrize("scale", [0.0, -0.5, pytest.param(3.0, marks=pytest.mark.slow)])
def test_any_scale(scale, fused, poisoned, linear_drawn, linear_eager, rule):
    function, eager = _both(linear_eager, None, scale)
    rule(function, linear_drawn(2, 5, 6, 1, 16, 16, fused), SINGLE, eager)


@pytest.mark.parametrize("size", [1e-6, 3e3])
def test_half_precision_holds_gradients_of_any_size(size, fused, linear_drawn, results):
    """Sums over tokens of small gradients fall below float16's numbers, those of large ones exceed them."""
    tensors = {name: x.half() for name, x in linear_drawn(1, 8, 9, 1, 32, 32, fused).items()}
    tensors["taps"] = tensors["taps"].float()        # whose gradient is such a sum itself
    grad = (size * torch.randn(1, 8, 9, 1, 32, dtype=torch.float64)).to(fused)
    found = results(_call, tensors, grad.half())
    true = results(_call, {name: x.double().cpu() for name, x in tensors.items()}, grad.half().double().cpu())
    for name in ("dq", "dk", "dv", "dtaps"):
        error = (found[name].double().cpu() - true[name]).abs().max()
        assert error <= 2e-3 * true[name].abs().max() + 2**-24, name      # 2^-24: float16's smallest step


@pytest.mark.parametrize("case", [pytest.param("brain", marks=pytest.mark.slow), "class-token"])
def test_repeats_are_bitwise_equal(case, short_slices, fused, linear_drawn, results):
    batch, height, width, heads, d, dv, grid, taps, dtype = CASES[case]
    tensors = {name: x.to(dtype) for name, x in linear_drawn(batch, height, width, heads, d, dv, fused, taps).items()}
    grad = torch.randn(tensors["v"].shape, device=fused, dtype=dtype)
    first, second = (results(lambda **x: _call(**x, grid=grid), tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_batch_equals_its_images_bit_for_bit(short_slices, fused, linear_drawn, results):
    tensors = {name: x.float() for name, x in linear_drawn(2, 5, 13, 1, 16, 16, fused).items()}
    grad = torch.randn(tensors["v"].shape, device=fused)
    both = results(_call, tensors, grad)
    for i in range(2):
        one = results(_call, {name: x[i:i + 1] for name, x in tensors.items()}, grad[i:i + 1])
        for name, value in one.items():
            assert torch.equal(value, both[name][i:i + 1]), name


@pytest.mark.parametrize("size, d", [((6, 11), 16), pytest.param((3, 4), 72, marks=pytest.mark.slow)], ids=str)
def test_packed_equals_separate_bit_for_bit(size, d, short_slices, fused, poisoned, linear_drawn, results):
    tensors = {name: x.float() for name, x in linear_drawn(1, *size, 1, d, d, fused).items()}
    taps, grad = tensors.pop("taps"), torch.randn(1, *size, 1, d, device=fused)
    apart = results(_call, tensors | {"taps": taps}, grad)
    packed = results(lambda qkv, taps: linear_attention_packed(qkv, taps.movedim(-1, 2)),
                     {"qkv": torch.stack(tuple(tensors.values()), 3), "taps": taps}, grad)
    assert torch.equal(packed["dqkv"], torch.stack([apart["dq"], apart["dk"], apart["dv"]], 3))
    assert torch.equal(packed["out"], apart["out"]) and torch.equal(packed["dtaps"], apart["dtaps"])
    assert packed["dqkv"].is_contiguous()


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(1, 9, 6, 3, 4, 16, device=fused)
    grad = torch.randn(1, 4, 6, 2, 16, device=fused)
    slices = dict(zip("qkv", wide[:, 1:9:2, :, :, 1:3].unbind(3), strict=True))       # rows, heads and columns apart
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in slices.items()}  # D apart
    heads_first = {name: x.transpose(1, 3).contiguous().transpose(1, 3) for name, x in slices.items()}
    plain = {name: x.contiguous() for name, x in slices.items()}
    expected = results(_call, plain, grad)
    for tensors in (slices, turned, heads_first):
        for name, value in results(_call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(_call, plain, torch.ones((), device=fused).expand(grad.shape))   # as out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


def test_a_large_mean_of_keys_and_values_costs_no_digits(fused, linear_drawn, results):
    tensors = {name: x.float() for name, x in linear_drawn(1, 12, 12, 1, 32, 32, fused, False).items()}
    tensors["v"] += 100
    found = results(_call, tensors, None)["out"]
    true = _call(*(x.double().cpu() for x in tensors.values()))
    assert (found.double().cpu() - true).abs().max() <= 1e-4


def test_an_empty_batch(fused, results):
    found = results(lambda qkv, taps: linear_attention_packed(qkv, taps),
                    {"qkv": torch.empty(0, 5, 5, 3, 2, 16, device=fused),
                     "taps": torch.empty(0, 2, 16, 3, 3, device=fused)}, torch.empty(0, 5, 5, 2, 16, device=fused))
    assert found["out"].shape == (0, 5, 5, 2, 16) and found["dqkv"].shape == (0, 5, 5, 3, 2, 16)
    assert found["dtaps"].shape == (0, 2, 16, 3, 3)


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 5, 5, 1, 16, device=fused) for _ in range(3))
    residual = torch.randn(1, 1, 16, 3, 3, device=fused, requires_grad=True)
    linear_attention(q, k.requires_grad_(), v, residual).sum().backward()
    assert q.grad is None and v.grad is None
    assert k.grad is not None and residual.grad is not None
    linear_attention(q, k, v, residual.detach()).sum().backward()
    assert k.grad.isfinite().all()


def test_a_graph_of_the_gradient_equals_the_references(fused, linear_drawn, linear_eager):
    tensors = [x.float().requires_grad_() for x in linear_drawn(1, 4, 5, 1, 8, 8, fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip(("q", "k", "v", "taps"), penalty(_call), penalty(linear_eager), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_explain_says_which_one_runs(fused):
    q = torch.randn(1, 5, 5, 1, 16, device=fused)
    assert explain("linear_attention", q, q, q).runs == "fused (triton)"
    assert "float64" in str(explain("linear_attention_packed", torch.stack((q, q, q), 3).double()))
