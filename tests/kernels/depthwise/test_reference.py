"""The reference is torch's convolution: in another memory order, differentiable twice."""
import pytest
import torch

from visionattn.kernels import depthwise_conv


@pytest.mark.parametrize("side", [1, 3, 5, 9])
@pytest.mark.parametrize("residual", [True, False])
def test_equals_a_loop_over_taps(side, residual):
    x, weight, bias = (torch.randn(n, dtype=torch.float64) for n in ((2, 4, 5, 3), (3, 1, side, side), (3,)))
    padded = torch.nn.functional.pad(x, (0, 0, *[side // 2] * 4))
    expected = bias + (x if residual else 0)
    for i in range(side):
        for j in range(side):
            expected = expected + weight[:, 0, i, j] * padded[:, i:i + 4, j:j + 5]
    torch.testing.assert_close(depthwise_conv(x, weight, bias, residual), expected, rtol=0, atol=1e-12)


def test_is_what_a_layer_of_torch_gives():
    layer, x = torch.nn.Conv2d(8, 8, 7, padding=3, groups=8), torch.randn(2, 9, 6, 8)
    expected = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(depthwise_conv(x, layer.weight, layer.bias), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual, bias", [(True, True), (False, False)])
def test_gradcheck_and_gradgradcheck_through_x_weight_and_bias(residual, bias):
    shapes = ((1, 3, 4, 2), (2, 1, 3, 3), (2,))[:2 + bias]
    tensors = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in shapes]

    def call(x, weight, bias=None):
        return depthwise_conv(x, weight, bias, residual)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)
