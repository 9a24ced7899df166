"""Cross-shaped windows: stripes of half of the heads each way, with a convolution of the values inside each stripe."""

import pytest
import torch
from torch.nn.functional import conv2d, scaled_dot_product_attention

from visionattn.layers import CrossShapedAttention


def _by_stripes(layer, x):
    """One stripe cut out after another, the last as narrow as the map leaves it."""
    (height, width), heads = x.shape[1:3], layer.num_heads
    q, k, v = layer.qkv(x).unflatten(-1, (3, heads, -1)).unbind(3)  # [B, H, W, heads, D]
    if layer.width is None:
        parts = [(slice(None), [(slice(None), slice(None))])]
    else:
        across = [(slice(None), slice(i, i + layer.width)) for i in range(0, width, layer.width)]
        along = [(slice(i, i + layer.width), slice(None)) for i in range(0, height, layer.width)]
        parts = [(slice(heads // 2), across), (slice(heads // 2, None), along)]
    out = torch.zeros_like(v)
    for (which, stripes), lepe in zip(parts, layer.lepe):
        for rows, columns in stripes:
            part = [y[:, rows, columns, which] for y in (q, k, v)]
            size, tokens = part[0].shape[1:3], [y.flatten(1, 2).transpose(1, 2) for y in part]
            attended = scaled_dot_product_attention(*tokens).transpose(1, 2).unflatten(1, size)
            image = part[2].flatten(3).permute(0, 3, 1, 2)
            local = conv2d(image, lepe.weight, lepe.bias, padding=1, groups=image.shape[1]).permute(0, 2, 3, 1)
            out[:, rows, columns, which] = attended + local.unflatten(3, (-1, layer.head_dim))
    return layer.proj(out.flatten(3))


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (1, 1), (2, 10)], ids=str)
@pytest.mark.parametrize("width", [1, 3, None])
def test_equals_stripes_cut_out_one_by_one(size, width):
    layer = CrossShapedAttention(32, 4, width).double()
    x = torch.randn(2, *size, 32, dtype=torch.float64, requires_grad=True)
    grad, wanted = torch.randn_like(x), [x, *layer.parameters()]
    out, expected = layer(x), _by_stripes(layer, x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, wanted, grad), torch.autograd.grad(expected, wanted, grad))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((30, 4), "dim must be a multiple of num_heads, got dim 30 and num_heads 4"),
        ((30, 0), "dim must be a multiple of num_heads, got dim 30 and num_heads 0"),
        ((32, 4, 0), "stripes must be at least 1 wide, and heads even for them, got 0 and 4"),
        ((24, 3, 7), "stripes must be at least 1 wide, and heads even for them, got 7 and 3"),
    ],
)
def test_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossShapedAttention(*arguments)
