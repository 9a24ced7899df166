"""Injective linear attention as a layer: its projections, the filters of its residual, and what comes before a map."""

import pytest
import torch
from torch.nn.functional import conv1d, conv2d

from visionattn.layers import LinearAttention
from visionattn.layers.linear import GroupedLinear


def _by_images(layer, x, grid=None, summary=None):
    """One image after another, with weights of every pair of tokens and a depthwise convolution of its values."""
    outs = []
    for image, mean in zip(x.flatten(1, 2), x.mean((1, 2)) if summary is None else summary):
        n, dim = image.shape
        heads, (rows, columns) = layer.num_heads, grid or x.shape[1:3]
        q, k, v = layer.qkv(image).unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)  # [heads, N, D] each
        scores = q @ k.transpose(1, 2) * (dim // heads) ** -0.5 / n
        weights = scores - scores.mean(2, keepdim=True) + 1 / n
        y = (weights @ v).transpose(0, 1).flatten(1)
        first, gelu, second = layer.residual
        hidden = gelu(conv1d(mean[:, None], first.weight, first.bias, groups=heads))
        filters = conv1d(hidden, second.weight, second.bias, groups=heads).view(dim, 1, 3, 3)
        last = v[:, n - rows * columns :].transpose(1, 2).reshape(1, dim, rows, columns)
        local = conv2d(last, filters, padding=1, groups=dim)
        if layer.lepe is not None:
            local = local + layer.lepe(last)
        y = torch.cat((y[: n - rows * columns], y[n - rows * columns :] + local.flatten(2)[0].T))
        outs.append(layer.proj(y))
    return torch.stack(outs).view(x.shape)


@pytest.mark.parametrize(
    "size, grid, kwargs",
    [((5, 7), None, {}), ((1, 1), None, {}), ((1, 14), (3, 4), {"qkv_bias": False}), ((6, 4), None, {"lepe": True})],
    ids=str,
)
def test_equals_weights_of_every_pair_and_a_convolution_a_channel(size, grid, kwargs):
    layer = LinearAttention(24, 3, **kwargs).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    grad, wanted = torch.randn_like(x), [x, *layer.parameters()]
    out, expected = layer(x, grid), _by_images(layer, x, grid)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out, wanted, grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, grad))


def test_filters_are_predicted_from_a_summary_where_one_is_given():
    layer, x = LinearAttention(16, 2).double(), torch.randn(2, 4, 3, 16, dtype=torch.float64)
    summary = torch.randn(2, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x, summary=summary), _by_images(layer, x, summary=summary))
    assert not torch.allclose(layer(x, summary=summary), layer(x))
    torch.testing.assert_close(layer(x, summary=x.mean((1, 2))), layer(x))


def test_a_grouped_linear_layer_is_a_convolution_of_width_1():
    layer, x = GroupedLinear(12, 30, 3).double(), torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv1d(x[..., None], layer.weight, layer.bias, groups=3)[..., 0])


def test_dropout_behind_the_projection_is_for_training():
    layer, x = LinearAttention(16, 2, proj_drop=0.5), torch.randn(1, 9, 9, 16)
    assert (layer(x) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (layer.eval()(x) == 0).sum() == 0


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_that_do_not_divide_the_channels_are_named(heads):
    with pytest.raises(ValueError, match=f"dim must be a multiple of num_heads, got dim 48 and num_heads {heads}"):
        LinearAttention(48, heads)
