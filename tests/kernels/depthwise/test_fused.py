"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import depthwise_conv, explain

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, channels, side, bias, residual, dtype
CASES = {
    "side-7": (1, 9, 6, 24, 7, True, True, BRAIN),
    "side-5": (1, 5, 9, 16, 5, True, False, HALF),
    "side-3": (2, 5, 9, 24, 3, True, True, SINGLE),
    "side-1": (1, 4, 5, 8, 1, False, True, SINGLE),
    "odd-channels": (1, 3, 3, 7, 3, True, False, SINGLE),
    "two-columns-of-tiles": (1, 5, 17, 130, 3, False, False, BRAIN),
    "row": (1, 1, 10, 8, 5, True, True, SINGLE),
    "column": (1, 10, 1, 8, 7, False, False, SINGLE),
}
SELDOM = ("side-5", "column", "two-columns-of-tiles")


def _call(x, taps, added=None, residual=False):
    return depthwise_conv(x, taps.permute(2, 0, 1).unsqueeze(1), added, residual)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SELDOM else []) for case in CASES])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, conv_drawn, conv_eager, rule):
    *shape, bias, residual, dtype = CASES[case]
    rule(lambda **t: _call(**t, residual=residual), conv_drawn(*shape, fused, bias), dtype,
         lambda **t: conv_eager(**t, residual=residual))


def test_repeats_are_bitwise_equal(fused, conv_drawn, results):
    tensors = {name: x.float() for name, x in conv_drawn(2, 5, 6, 16, 3, fused).items()}
    grad = torch.randn(2, 5, 6, 16, device=fused)
    first, second = (results(_call, tensors, grad) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_batch_equals_its_images_bit_for_bit(fused, conv_drawn, results):
    tensors = {name: x.float() for name, x in conv_drawn(2, 5, 6, 16, 3, fused).items()}
    grad = torch.randn(2, 5, 6, 16, device=fused)
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


def test_an_empty_batch(fused, results):
    found = results(_call, {"x": torch.empty(0, 5, 5, 8, device=fused), "taps": torch.randn(3, 3, 8, device=fused)},
                    torch.empty(0, 5, 5, 8, device=fused))
    assert found["out"].shape == found["dx"].shape == (0, 5, 5, 8) and not found["dtaps"].any()


def test_only_what_is_asked_for_gets_a_gradient(fused):
    x, weight, bias = (torch.randn(n, device=fused) for n in ((1, 4, 5, 8), (8, 1, 3, 3), (8,)))
    depthwise_conv(x, weight, bias.requires_grad_()).sum().backward()
    assert x.grad is None and weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 20))


def test_explain_says_which_one_runs(fused):
    x, weight = torch.randn(1, 4, 5, 8, device=fused), torch.randn(8, 1, 9, 9, device=fused)
    assert "not one of 1, 3, 5, 7" in str(explain("depthwise_conv", x, weight))
    assert explain("depthwise_conv", x, weight[..., 1:8, 1:8]).runs == "fused (triton)"
