"""The window attention layer: maps that windows do not divide, its table, its dropout, its errors."""

import math
import warnings

import pytest
import torch
from torch import nn

from visionattn.kernels.window.relative import relative_index
from visionattn.layers import WindowAttention, attn_drop


def _layer(**kwargs):
    torch.manual_seed(0)
    layer = WindowAttention(**{"dim": 24, "num_heads": 3, "window_size": 4, **kwargs}).double()
    if layer.relative_position_bias_table is not None:
        nn.init.normal_(layer.relative_position_bias_table)
    return layer


def _by_rolling(layer, x):
    """The published way: pad, roll, cut into windows, attend under a mask of regions, and all of it back."""
    (b, h, w, c), (wh, ww) = x.shape, layer.window_size
    sy, sx = (0 if n <= size else s for n, size, s in zip((h, w), layer.window_size, layer.shift))
    x = nn.functional.pad(x, (0, 0, 0, -w % ww, 0, -h % wh))
    rows, columns = x.shape[1:3]
    region = torch.zeros(1, rows, columns, 1)
    for i, y in enumerate((slice(-wh, -sy or None), slice(-sy, None) if sy else slice(0, 0))):
        region[:, y] += 3 * (i + 1)
    for i, z in enumerate((slice(-ww, -sx or None), slice(-sx, None) if sx else slice(0, 0))):
        region[:, :, z] += i + 1

    def cut(z):
        return z.unflatten(1, (-1, wh)).unflatten(3, (-1, ww)).transpose(2, 3).flatten(0, 2).flatten(1, 2)

    tokens = cut(torch.roll(x, (-sy, -sx), (1, 2)).view(b, rows, columns, c))
    mask = cut(region).squeeze(-1)
    hidden = (mask[:, None] != mask[:, :, None]).repeat(b, 1, 1)[:, None]
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / math.sqrt(layer.head_dim)
    if layer.relative_position_bias_table is not None:
        logits = logits + layer.relative_position_bias_table[relative_index(layer.window_size)].permute(2, 0, 1)
    out = (logits.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = out.view(b, rows // wh, columns // ww, wh, ww, c).transpose(2, 3).reshape(b, rows, columns, c)
    return layer.proj(torch.roll(out, (sy, sx), (1, 2))[:, :h, :w])


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (3, 11), (4, 8), (1, 1)])
@pytest.mark.parametrize("shift", [0, 2, (1, 3)])
@pytest.mark.parametrize("rel_bias", [True, False])
def test_equals_rolling_and_masking_on_a_map_padded_first(size, shift, rel_bias):
    layer = _layer(shift=shift, rel_bias=rel_bias)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _by_rolling(layer, x))


def _dense(layer, x, query=None):
    """Every pair of the map's positions, those of different windows masked; position p of an axis has place[p]."""
    (h, w), (wh, ww) = x.shape[1:3], layer.window_size
    places = []  # (window, number in it) of each position, per axis
    for n, size in ((h, wh), (w, ww)):
        distance = -(-n // size)
        p = torch.arange(n)
        places.append((p % distance, p // distance) if layer.partition == "grid" else (p // size, p % size))
    (my, ny), (mx, nx) = places
    window = (my[:, None] * (h + w) + mx).flatten()
    number = (ny[:, None] * ww + nx).flatten()
    parts = layer.qkv(x).flatten(1, 2).unflatten(-1, (-1, layer.num_heads, layer.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = parts if query is None else (None, *parts)
    if query is not None:
        q = query.flatten(1, 2)[:, number].unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    logits = q @ k.mT / math.sqrt(layer.head_dim)
    bias = layer.relative_position_bias_table[relative_index(layer.window_size)].permute(2, 0, 1)
    logits = logits + bias[:, number[:, None], number]
    out = logits.masked_fill(window[:, None] != window, float("-inf")).softmax(-1) @ v
    return layer.proj(out.transpose(1, 2).flatten(2).view_as(x))


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (3, 11), (1, 1)])
@pytest.mark.parametrize("partition", ["block", "grid"])
@pytest.mark.parametrize("shared_query", [False, True], ids=["own queries", "shared query"])
def test_equals_dense_attention_masked_to_windows_without_padding(size, partition, shared_query):
    layer = _layer(window_size=(4, 3), partition=partition, attend_padding=False, shared_query=shared_query)
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 4, 3, 24, dtype=torch.float64, requires_grad=True) if shared_query else None
    given = (x,) if query is None else (x, query)
    found, expected = layer(*given), _dense(layer, *given)
    torch.testing.assert_close(found, expected)
    grad, sources = torch.randn_like(found), (*given, *layer.parameters())
    for g, e in zip(torch.autograd.grad(found, sources, grad), torch.autograd.grad(expected, sources, grad)):
        torch.testing.assert_close(g, e)


def test_attended_padding_of_a_grid_is_a_key():
    x = torch.randn(1, 5, 5, 24, dtype=torch.float64)
    masked, attended = (_layer(partition="grid", attend_padding=a) for a in (False, True))
    whole = nn.functional.pad(x, (0, 0, 0, 3, 0, 3))
    torch.testing.assert_close(attended(x), _dense(attended, whole)[:, :5, :5])
    assert not torch.allclose(attended(x), masked(x))


def test_another_window_resizes_the_table_and_its_indices_and_back():
    layer = _layer(window_size=(4, 6), partition="grid", attend_padding=False)
    before = layer.relative_position_bias_table.detach().clone()
    layer.relative_position_bias_table.requires_grad_(False)
    layer.set_window_size((3, 5))
    assert layer.relative_position_bias_table.shape == (5 * 9, 3) and layer.window_size == (3, 5)
    assert not layer.relative_position_bias_table.requires_grad
    assert layer.relative_position_bias_table.dtype == torch.float64
    x = torch.randn(2, 6, 10, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _dense(layer, x))
    centre = layer.relative_position_bias_table.unflatten(0, (5, 9))[2, 4]
    torch.testing.assert_close(centre, before.unflatten(0, (7, 11))[3, 5], rtol=0, atol=1e-4)
    layer.set_window_size(3)
    torch.testing.assert_close(layer(x), _dense(layer, x))


def test_every_parameter_gets_a_gradient_on_a_ragged_map():
    layer = _layer(shift=2)
    layer(torch.randn(1, 9, 7, 24, dtype=torch.float64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize(
    "kwargs", [{}, {"shift": (1, 2)}, {"partition": "grid", "attend_padding": False}, {"shared_query": True}], ids=str
)
def test_windows_of_attention_dropout_are_the_op(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = _layer(**kwargs, attn_drop=1e-300)
    given = [torch.randn(2, 9, 13, 24, dtype=torch.float64)]
    if layer.shared_query:
        given.append(torch.randn(2, 4, 4, 24, dtype=torch.float64))
    torch.testing.assert_close(layer.train()(*given), layer.eval()(*given))


def test_attention_dropout_drops_in_training_only_and_keeps_the_mean():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = _layer(attn_drop=0.5)
    x = torch.randn(1, 8, 8, 24, dtype=torch.float64)
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
        WindowAttention(32, 1, attn_drop=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WindowAttention(32, 1, attn_drop=0.1)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dim": 25}, "dim must be a multiple of num_heads, got dim 25 and num_heads 3"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"window_size": 0}, r"window_size must be at least 1, got \(0, 0\)"),
        ({"shift": (0, 4)}, r"shift must lie in 0..window_size - 1 per axis, got \(0, 4\)"),
        ({"partition": "grid", "shift": 1}, r"shift must be 0 with partition=\"grid\", got \(1, 1\)"),
        ({"partition": "rows"}, "partition must be \"block\" or \"grid\", got 'rows'"),
        ({"shared_query": True, "shift": 1}, r"shift must be 0 with shared_query, got \(1, 1\)"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _layer(**kwargs)


@pytest.mark.parametrize("shared_query", [False, True])
def test_query_that_is_missing_or_not_asked_for_is_named(shared_query):
    given = [torch.randn(1, 4, 4, 24, dtype=torch.float64)] * (1 if shared_query else 2)
    with pytest.raises(ValueError, match=f"query must be given if and only if .* shared_query={shared_query}"):
        _layer(shared_query=shared_query)(*given)


def test_table_takes_no_weight_decay():
    assert _layer().no_weight_decay() == {"relative_position_bias_table"}
    assert _layer(rel_bias=False).no_weight_decay() == set()
