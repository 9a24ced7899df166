"""BiFormer's attention layers: whom regions choose, padding, the local term, scales, errors."""

import pytest
import torch
from torch.nn.functional import conv2d, linear, pad, scaled_dot_product_attention

from visionattn.layers import GlobalAttention, RoutedAttention
from visionattn.layers.routing import choose_regions


def _layer(**kwargs):
    torch.manual_seed(0)
    return RoutedAttention(**{"dim": 32, "num_heads": 2, "regions": 3, "topk": 2, **kwargs}).double()


def _by_loop(layer, x):
    """Region after region of a map that the regions divide, out of the layer's parameters."""
    (rows, columns), dim = layer.regions, x.shape[-1]
    size = x.shape[1] // rows, x.shape[2] // columns
    q, k = linear(x, layer.qk.weight, layer.qk.bias).split(dim, -1)
    v = linear(x, layer.v.weight, layer.v.bias)

    def region(y, number):
        top, left = number // columns * size[0], number % columns * size[1]
        return y[:, top : top + size[0], left : left + size[1]]

    out = torch.zeros_like(x)
    for b in range(len(x)):
        mean_q, mean_k = (
            torch.stack([region(y[b : b + 1], n).mean((0, 1, 2)) for n in range(rows * columns)]) for y in (q, k)
        )
        for n in range(rows * columns):
            chosen = (mean_k @ mean_q[n]).argsort(descending=True)[: layer.topk].tolist()
            keys, values = (torch.cat([region(y[b : b + 1], c).flatten(0, 2) for c in chosen]) for y in (k, v))
            queries = region(q[b : b + 1], n)
            heads = [
                (hq.flatten(0, 2) @ hk.T * dim**-0.5).softmax(-1) @ hv
                for hq, hk, hv in zip(*(y.chunk(layer.num_heads, -1) for y in (queries, keys, values)))
            ]
            region(out[b : b + 1], n).copy_(torch.cat(heads, -1).view(queries.shape))
    local = conv2d(v.permute(0, 3, 1, 2), layer.lepe.weight, layer.lepe.bias, padding=2, groups=dim)
    return linear(out + local.permute(0, 2, 3, 1), layer.proj.weight, layer.proj.bias)


@pytest.mark.parametrize("kwargs", [{}, {"topk": 9}, {"regions": (2, 4), "topk": 3}, {"num_heads": 4}], ids=str)
def test_equals_a_loop_over_regions(kwargs):
    layer = _layer(**kwargs)
    x = torch.randn(2, 2 * layer.regions[0], 3 * layer.regions[1], 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), _by_loop(layer, x))


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (4, 3)])
def test_padding_counts_and_is_cut_off(size):
    layer = _layer()
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    whole = pad(x, (0, 0, 0, -size[1] % 3, 0, -size[0] % 3))
    with torch.no_grad():
        found = layer(x)
        assert found.shape == x.shape
        torch.testing.assert_close(found, _by_loop(layer, whole)[:, : size[0], : size[1]])


def test_regions_choose_the_largest_products_of_means():
    qk = torch.zeros(1, 4, 4, 2, 1, 8)
    qk[0, :2, :2, 0, 0, 0] = 1.0  # region 0 asks for the first channel
    qk[0, 2:, 2:, 1, 0, 0] = torch.tensor([[9.0, 0.0], [0.0, -1.0]])  # region 3: a mean of 2
    qk[0, :2, 2:, 1, 0, 0] = 1.0  # region 1: a mean of 1
    assert set(choose_regions(qk, (2, 2), 2)[0, 0].tolist()) == {1, 3}


def test_no_gradient_goes_through_the_choice():
    qk = torch.randn(1, 4, 4, 2, 1, 8, requires_grad=True)
    assert not choose_regions(qk, (2, 2), 2).requires_grad


def test_every_parameter_gets_a_gradient():
    for layer in (_layer(), GlobalAttention(32, 4, qkv_bias=True).double()):
        layer(torch.randn(2, 5, 7, 32, dtype=torch.float64)).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_global_attention_adds_a_convolution_of_its_input():
    layer = GlobalAttention(32, 4).double()
    x = torch.randn(2, 3, 5, 32, dtype=torch.float64)
    q, k, v = linear(x.flatten(1, 2), layer.qkv.weight).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    local = conv2d(x.permute(0, 3, 1, 2), layer.lepe.weight, layer.lepe.bias, padding=2, groups=32)
    expected = linear(attended + local.permute(0, 2, 3, 1), layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_heads": 3}, "dim must be a multiple of num_heads, got dim 32 and num_heads 3"),
        ({"regions": 0}, r"regions must be at least 1 along each axis, got \(0, 0\)"),
        ({"topk": 0}, "topk must lie in 1..9, the number of regions, got 0"),
        ({"topk": 10}, "topk must lie in 1..9, the number of regions, got 10"),
        ({"lepe_size": 4}, "lepe_size must be a positive odd number, got 4"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _layer(**kwargs)
    if "topk" not in kwargs and "regions" not in kwargs:
        with pytest.raises(ValueError, match=message):
            GlobalAttention(32, **{"num_heads": 4, **kwargs})
