"""The varied window attention layer: the published form by grid_sample, its start, ragged maps, its errors."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, grid_sample, leaky_relu, pad

from visionattn.layers import VariedWindowAttention, WindowAttention


def _layer(spread=1.0, **kwargs):
    torch.manual_seed(0)
    layer = VariedWindowAttention(**{"dim": 24, "num_heads": 3, "window_size": 4, **kwargs}).double()
    if spread:
        nn.init.normal_(layer.places.weight, std=spread)
        nn.init.normal_(layer.places.bias, std=spread)
    nn.init.normal_(layer.relative_position_bias_table)
    return layer


def _published(layer: VariedWindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Keys and values by grid_sample in normalised coordinates on padded maps, then windows one by one."""
    (batch, height, width, dim), (h, w), heads = x.shape, layer.window_size, layer.num_heads
    fill = (0, 0, 0, -width % w, 0, -height % h)
    q, k, v = (pad(z, fill) for z in layer.qkv(x).chunk(3, -1))
    rows, columns = q.shape[1] // h, q.shape[2] // w
    pooled = leaky_relu(avg_pool2d(pad(x, fill).permute(0, 3, 1, 2), (h, w)))
    found = nn.functional.conv2d(pooled, layer.places.weight, layer.places.bias).unflatten(1, (heads, 4))
    apart = found.new_tensor([columns, rows])
    offset, grow = (found[:, :, i].permute(0, 1, 3, 4, 2) for i in (slice(0, 2), slice(2, 4)))  # [B, heads, M, N, 2]
    grids = [
        torch.linspace(-1, 1, n, dtype=x.dtype).unflatten(0, (-1, s)) for n, s in ((rows * h, h), (columns * w, w))
    ]
    out = torch.zeros(batch, rows * h, columns * w, dim, dtype=x.dtype)
    index = torch.arange(h * w)
    y, x_ = index // w, index % w
    entry = (y[:, None] - y + h - 1) * (2 * w - 1) + x_[:, None] - x_ + w - 1
    for m in range(rows):
        for n in range(columns):
            here = torch.stack(torch.meshgrid(grids[1][n], grids[0][m], indexing="xy"), -1)  # (x, y) of each position
            middle = torch.stack((grids[1][n].mean(), grids[0][m].mean()))
            for head in range(heads):
                part = slice(head * dim // heads, (head + 1) * dim // heads)
                move, stretch = (z[:, head, m, n, None, None] for z in (offset / apart, grow))
                grid = middle + (1 + stretch) * (here - middle) + move
                keys, values = (
                    grid_sample(z[..., part].permute(0, 3, 1, 2), grid, padding_mode="zeros", align_corners=True)
                    for z in (k, v)
                )
                window = (slice(None), slice(m * h, m * h + h), slice(n * w, n * w + w), part)
                logits = q[window].flatten(1, 2) @ keys.flatten(2) * (dim // heads) ** -0.5
                weights = (logits + layer.relative_position_bias_table[:, head][entry]).softmax(-1)
                out[window] = (weights @ values.flatten(2).transpose(1, 2)).unflatten(1, (h, w))
    return layer.proj(out[:, :height, :width])


@pytest.mark.parametrize("window", [4, (3, 5)])
@pytest.mark.parametrize("size", [(8, 12), (9, 15), (7, 4), (2, 3)])
def test_equals_the_published_form(size, window):
    layer = _layer(window_size=window)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _published(layer, x))


def test_starts_as_window_attention():
    layer = _layer(0)
    plain = WindowAttention(24, 3, 4).double()
    plain.load_state_dict({name: p for name, p in layer.state_dict().items() if not name.startswith("places.")})
    x = torch.randn(2, 8, 12, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))
    layer.places.weight.data.normal_()
    layer.places.reset_parameters()
    assert not any(p.any() for p in layer.places.parameters())


@pytest.mark.parametrize("spread", [0, 1.0])
def test_every_parameter_gets_a_gradient(spread):
    layer = _layer(spread)
    layer(torch.randn(1, 9, 7, 24, dtype=torch.float64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_places_are_float32_under_autocast():
    layer = _layer().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.places(torch.randn(1, 9, 7, 24)).dtype == torch.float32
        assert layer(torch.randn(1, 9, 7, 24)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:attn_drop")
def test_attention_dropout_drops_in_training_alone():
    layer, x = _layer(attn_drop=0.5), torch.randn(1, 8, 8, 24, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), _published(layer, x))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dim": 25}, "dim must be a multiple of num_heads, got dim 25 and num_heads 3"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"window_size": 0}, r"window_size must be at least 1, got \(0, 0\)"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _layer(**kwargs)


def test_table_takes_no_weight_decay():
    assert _layer().no_weight_decay() == {"relative_position_bias_table"}
