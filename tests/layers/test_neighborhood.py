"""The neighborhood attention layer: its fit to small maps, its table, its dropout, its errors."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionattn.layers import NeighborhoodAttention, attn_drop
from visionattn.layers.neighborhood import clamp_neighborhood


def _layer(**kwargs):
    torch.manual_seed(0)
    layer = NeighborhoodAttention(**{"dim": 24, "num_heads": 3, **kwargs}).double()
    if layer.rpb is not None:
        nn.init.normal_(layer.rpb)
    return layer


def _full_attention(layer, x):
    """What the layer must be where the window covers the map: every pair, the table read at key minus query."""
    b, h, w, _ = x.shape
    q, k, v = layer.qkv(x).view(b, h * w, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    y, x_ = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x_ = y.flatten(), x_.flatten()
    (kh, kw) = layer.kernel_size
    bias = layer.rpb[:, y[None] - y[:, None] + kh - 1, x_[None] - x_[:, None] + kw - 1]
    out = ((q @ k.mT) / math.sqrt(layer.head_dim) + bias).softmax(-1) @ v
    return layer.proj(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 1), (7, 2)])
@pytest.mark.parametrize("dilation, stride", [(1, 1), (1, 3), (4, 1), (2, 2)])
def test_map_within_the_window_is_full_attention(size, dilation, stride):
    layer = _layer(kernel_size=7, dilation=dilation, stride=stride)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _full_attention(layer, x))


def test_rectangular_window_uses_the_table_rows_then_columns():
    layer = _layer(kernel_size=(5, 9))
    x = torch.randn(1, 5, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _full_attention(layer, x))


@pytest.mark.parametrize("size", [(5, 9), (3, 30), (14, 2), (21, 16), (1, 1)])
def test_padding_of_small_maps_is_zeros_before_the_projection_that_are_keys(size):
    layer, fitting = _layer(dilation=(2, 3), pad_small=True), _layer(dilation=(2, 3))
    nn.init.normal_(layer.qkv.bias)
    fitting.load_state_dict(layer.state_dict())
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    rows, columns = (max(0, least - n) for least, n in zip((14, 21), size))
    padded = F.pad(x, (0, 0, 0, columns, 0, rows))
    torch.testing.assert_close(layer(x), fitting(padded)[:, : size[0], : size[1]])
    assert (rows, columns) == (0, 0) or not torch.allclose(layer(x), fitting(x))


def test_fit_cuts_kernel_then_dilation_then_stride():
    assert clamp_neighborhood(56, 7, 8, 1) == (7, 8, 1)
    assert clamp_neighborhood(55, 7, 8, 1) == (7, 7, 1)
    assert clamp_neighborhood(8, 7, 8, 2) == (7, 1, 2)
    assert clamp_neighborhood(3, 7, 2, 5) == (3, 1, 3)
    assert clamp_neighborhood(1, 7, 2, 2) == (1, 1, 1)


@pytest.mark.parametrize("pad_small", [False, True])
@pytest.mark.parametrize("size", [(20, 23), (8, 40), (3, 30)])
def test_every_parameter_gets_a_gradient_at_any_size(size, pad_small):
    layer = _layer(dilation=3, stride=2, pad_small=pad_small)
    layer(torch.randn(1, *size, 24, dtype=torch.float64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("dilation, stride", [(1, 1), (1, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("rel_bias", [True, False])
def test_gathered_windows_of_attention_dropout_are_the_op(dilation, stride, rel_bias):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = _layer(dilation=dilation, stride=stride, attn_drop=1e-300, rel_bias=rel_bias)
    x = torch.randn(2, 23, 17, 24, dtype=torch.float64)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    layer.pad_small = True
    torch.testing.assert_close(layer.train()(x[:, :9]), layer.eval()(x[:, :9]))


def test_attention_dropout_drops_in_training_only_and_keeps_the_mean():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = _layer(attn_drop=0.5)
    x = torch.randn(1, 14, 14, 24, dtype=torch.float64)
    expected = layer.eval()(x)
    torch.testing.assert_close(layer(x), expected)
    layer.train()
    draws = torch.stack([layer(x) for _ in range(60)])
    assert draws.std(0).min() > 0
    # the mean of 60 draws lies within 6 of its own standard errors, everywhere
    assert ((draws.mean(0) - expected).abs() <= 6 * draws.std(0) / math.sqrt(len(draws))).all()


def test_attention_dropout_warns_once(monkeypatch):
    monkeypatch.setattr(attn_drop, "_warned", False)
    with pytest.warns(UserWarning, match="attn_drop=0.1"):
        NeighborhoodAttention(32, 1, attn_drop=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeighborhoodAttention(32, 1, attn_drop=0.1)


def test_autocast_runs_in_low_precision_on_float32_parameters():
    layer = _layer().float()
    x = torch.randn(1, 9, 11, 24)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    double = layer.double()(x.double())
    eager = F.linear(x.bfloat16(), layer.qkv.weight.bfloat16()).double() - F.linear(x.double(), layer.qkv.weight)
    assert (low.double() - double).abs().max() < 4 * eager.abs().max()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dim": 25}, "dim must be a multiple of num_heads, got dim 25 and num_heads 3"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"kernel_size": 0}, r"kernel_size must be positive, got \(0, 0\)"),
        ({"dilation": (1, -1)}, r"dilation must be positive, got \(1, -1\)"),
        ({"kernel_size": 3, "stride": (2, 4)}, r"stride must be at most kernel_size \(3, 3\), got \(2, 4\)"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _layer(**kwargs)


def test_table_takes_no_weight_decay():
    assert _layer().no_weight_decay() == {"rpb"}
    assert _layer(rel_bias=False).no_weight_decay() == set()
