"""The halo attention layer: timm's results, ragged maps, strides that do not divide the block, its errors."""

import pytest
import torch
from timm.layers.halo_attn import HaloAttn
from torch import nn
from torch.nn.functional import pad

from visionattn.layers import HaloAttention
from visionattn.layers.head import ConvClassifierHead


def _layer(**kwargs):
    torch.manual_seed(0)
    return HaloAttention(**{"dim": 24, "num_heads": 3, "block_size": 4, "halo_size": 1, **kwargs}).double()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2},
        {"dim_out": 48},
        {"dim_head": 16},
        {"block_size": 8, "halo_size": 3},
        {"block_size": 5, "stride": 2},
        {"qkv_bias": True},
    ],
    ids=str,
)
def test_equals_timms_with_its_state_dict(kwargs):
    layer = _layer(**kwargs)
    theirs = HaloAttn(**{"dim": 24, "num_heads": 3, "block_size": 4, "halo_size": 1, **kwargs}).double()
    assert layer.load_state_dict(theirs.state_dict())
    side = 2 * layer.block_size[0]
    x = torch.randn(2, side, 2 * side, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x).permute(0, 3, 1, 2), theirs(x.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (3, 11), (1, 1), (8, 9)])
def test_a_ragged_map_is_one_whose_projections_are_filled_up_with_zeros(size, stride):
    layer = _layer(stride=stride)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    whole = pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))  # no bias: zeros stay zeros
    rows, columns = (-(-n // stride) for n in size)
    found = layer(x)
    assert found.shape == (2, rows, columns, 24)
    torch.testing.assert_close(found, layer(whole)[:, :rows, :columns])


def test_a_stride_that_does_not_divide_the_block_averages_what_there_is():
    layer = _layer(block_size=5, stride=2)
    x = torch.randn(1, 7, 6, 24, dtype=torch.float64)
    found = layer(x)
    layer.pool = nn.Identity()
    full = layer(x)
    assert found.shape == (1, 4, 3, 24)
    torch.testing.assert_close(found[:, 1, 1], full[:, 2:4, 2:4].mean((1, 2)))
    torch.testing.assert_close(found[:, 3, 1], full[:, 6:, 2:4].mean((1, 2)))


def test_every_parameter_gets_a_gradient_on_a_ragged_map():
    layer = _layer(stride=2, qkv_bias=True)
    layer(torch.randn(1, 9, 7, 24, dtype=torch.float64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dim_out": 25}, "dim_out must be a multiple of num_heads, got 25 and num_heads 3"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"block_size": 0}, r"block_size must be at least 1, got \(0, 0\)"),
        ({"halo_size": (0, -1)}, r"halo_size must be at least 0, got \(0, -1\)"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _layer(**kwargs)


def test_tables_take_no_weight_decay():
    assert _layer().pos_embed.no_weight_decay() == {"height_rel", "width_rel"}


def test_a_head_with_a_convolution_keeps_it_until_all_goes():
    head = ConvClassifierHead(8, 5, hidden_size=12).eval()
    x = torch.randn(2, 3, 4, 8)
    assert head(x).shape == (2, 5) and head(x, pre_logits=True).shape == (2, 12)
    head.reset(0, "", in_features=8)
    assert head.num_features == 12 and head(x).shape == (2, 3, 4, 12)
    head.reset(3, "avg", reset_other=True, in_features=8)
    assert head.num_features == 8 and head(x).shape == (2, 3)
