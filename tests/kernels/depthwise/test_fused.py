"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import itertools

import pytest
import torch

from visionattn.kernels import depthwise_conv, explain

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, channels, side, bias, residual, dtype
CASES = {
    "side-7": (1, 9, 6, 24, 7, True, True, BRAIN),
    "side-5": (1, 5, 9, 16, 5, True, False, HALF),
    "side-3": (1, 5, 9, 24, 3, True, True, SINGLE),
    "side-1": (1, 4, 5, 8, 1, False, True, SINGLE),
    "odd-channels": (1, 3, 3, 7, 3, True, False, SINGLE),
    "two-columns-of-tiles": (1, 5, 17, 130, 3, False, False, BRAIN),
    "row": (1, 1, 10, 8, 5, True, True, SINGLE),
    "column": (1, 10, 1, 8, 7, False, False, SINGLE),
    "smaller-than-the-filter": (1, 2, 3, 8, 7, True, True, SINGLE),
    "wide-tiles-and-two-of-them": (1, 1, 33, 8, 3, True, True, BRAIN),
    "tall-tiles-and-two-of-them": (1, 17, 3, 8, 5, False, False, HALF),
    "one-position": (3, 1, 1, 8, 3, True, True, SINGLE),
}
SELDOM = ("side-7", "side-5", "column", "two-columns-of-tiles", "tall-tiles-and-two-of-them", "one-position")


def _call(x, taps, added=None, residual=False):
    return depthwise_conv(x, taps.permute(2, 0, 1).unsqueeze(1), added, residual)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SELDOM else []) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, conv_drawn, conv_eager, rule):
    *shape, bias, residual, dtype = CASES[case]
    rule(lambda **t: _call(**t, residual=residual), conv_drawn(*shape, fused, bias), dtype,
         lambda **t: conv_eager(**t, residual=residual))


def test_repeats_are_bitwise_equal(fused, conv_drawn, results):
    tensors = {name: x.float() for name, x in conv_drawn(2, 3, 4, 8, 3, fused).items()}
    grad = torch.randn(2, 3, 4, 8, device=fused)
    first, second = (results(_call, tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_batch_equals_its_images_bit_for_bit(fused, conv_drawn, results):
    tensors = {name: x.float() for name, x in conv_drawn(2, 3, 4, 8, 3, fused).items()}
    grad = torch.randn(2, 3, 4, 8, device=fused)
    both = results(_call, tensors, grad)
    for i in range(2):
        one = results(_call, tensors | {"x": tensors["x"][i:i + 1]}, grad[i:i + 1])
        assert torch.equal(one["out"], both["out"][i:i + 1]) and torch.equal(one["dx"], both["dx"][i:i + 1])


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(1, 9, 6, 32, device=fused)
    taps, grad = torch.randn(3, 3, 8, device=fused), torch.randn(1, 4, 6, 8, device=fused)
    part = wide[:, 1:9:2, :, 3:11]                                  # rows, channels and columns apart
    turned = part.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)      # channels first in memory
    expected = results(_call, {"x": part.contiguous(), "taps": taps}, grad)
    for x in (part, turned):
        for name, value in results(_call, {"x": x, "taps": taps}, grad).items():
            assert torch.equal(value, expected[name]), name


def test_tiles_of_seven_rows_never_cover_more_than_tiles_of_eight_do():
    pytest.importorskip("triton", reason="needs triton")
    from visionattn.kernels.depthwise import tuning
    for side, height in itertools.product((3, 5, 7), range(1, 40)):
        for rows in (tuning.filters(height)["TH"], tuning.convolve(side, height, 56, 96, BRAIN)["TH"]):
            assert -(-height // rows) * rows <= -(-height // 8) * 8


def test_float32_filters_beside_a_map_in_bfloat16_are_not_rounded(fused):
    x, weight = torch.ones(1, 4, 5, 8, device=fused, dtype=BRAIN), torch.zeros(8, 1, 3, 3, device=fused)
    weight[..., 1, 1], weight[..., 1, 0] = 1 + 2**-10, -1       # in bfloat16 they would cancel
    leaves = x.requires_grad_(), weight.requires_grad_()
    out = depthwise_conv(*leaves)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert [t.dtype for t in (out, *grads)] == [BRAIN, BRAIN, SINGLE]
    assert (out[:, :, 1:] == 2**-10).all() and (grads[0][:, :, :-1] == 2**-10).all()


def test_gradients_are_contiguous_as_compilers_were_told(fused):
    leaves = [torch.randn(n, device=fused).requires_grad_() for n in ((1, 3, 4, 8), (8, 1, 3, 3), (8,))]
    out = depthwise_conv(*leaves)
    assert all(g.is_contiguous() for g in torch.autograd.grad(out, leaves, torch.ones_like(out)))


def test_a_graph_of_the_gradient_equals_the_references(fused, conv_drawn, conv_eager):
    tensors = [x.float().requires_grad_() for x in conv_drawn(1, 3, 4, 8, 3, fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip(("x", "taps", "added"), penalty(_call), penalty(conv_eager), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_an_empty_batch(fused, results):
    found = results(_call, {"x": torch.empty(0, 5, 5, 8, device=fused), "taps": torch.randn(3, 3, 8, device=fused)},
                    torch.empty(0, 5, 5, 8, device=fused))
    assert found["out"].shape == found["dx"].shape == (0, 5, 5, 8) and not found["dtaps"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    x, weight, bias = (torch.randn(n, device=fused) for n in ((1, 4, 5, 8), (8, 1, 3, 3), (8,)))
    depthwise_conv(x, weight, bias.requires_grad_()).sum().backward()
    assert x.grad is None and weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 20))


def test_without_gradients_of_filters_none_are_computed(fused, monkeypatch):
    from visionattn.kernels.depthwise import fused as module
    x = torch.randn(1, 4, 5, 8, device=fused, requires_grad=True)
    weight = torch.randn(8, 1, 3, 3, device=fused)
    monkeypatch.setattr(module, "_filters_plan", None)          # what they would need
    depthwise_conv(x, weight).sum().backward()
    assert x.grad.isfinite().all()


def test_explain_says_which_one_runs(fused):
    x, weight = torch.randn(1, 4, 5, 8, device=fused), torch.randn(8, 1, 9, 9, device=fused)
    assert "not one of 1, 3, 5, 7" in str(explain("depthwise_conv", x, weight))
    assert explain("depthwise_conv", x, weight[..., 1:8, 1:8]).runs == "fused (triton)"
