"""Channel attention as a layer, and convolutional position encodings."""

import pytest
import torch
from timm.models.davit import ChannelAttention as TimmsAttention
from timm.models.davit import ConvPosEnc

from visionattn.layers import ChannelAttention, ConvPositionEncoding


@pytest.mark.parametrize("bias", [True, False])
def test_channel_attention_gives_timms_output_and_gradients(bias):
    theirs = TimmsAttention(48, 3, qkv_bias=bias).double()
    ours = ChannelAttention(48, 3, qkv_bias=bias).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 7, 48, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    found = torch.autograd.grad(ours(x), [x, *ours.parameters()], grad)
    expected = torch.autograd.grad(theirs(x.flatten(1, 2)), [x, *theirs.parameters()], grad.flatten(1, 2))
    torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)))
    torch.testing.assert_close(found, expected)


def test_dropout_behind_the_projection_is_for_training():
    layer, x = ChannelAttention(16, 2, proj_drop=0.5), torch.randn(1, 9, 9, 16)
    assert (layer(x) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (layer.eval()(x) == 0).sum() == 0


@pytest.mark.parametrize("groups", [0, 5])
def test_groups_that_do_not_divide_the_channels_are_named(groups):
    with pytest.raises(ValueError, match=f"dim must be a multiple of num_groups, got dim 48 and num_groups {groups}"):
        ChannelAttention(48, groups)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_position_encoding_adds_a_depthwise_convolution(side):
    theirs, ours = ConvPosEnc(8, side).double(), ConvPositionEncoding(8, side).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert ours(x).is_contiguous()


@pytest.mark.parametrize("side", [0, 4])
def test_a_position_encoding_needs_an_odd_kernel(side):
    with pytest.raises(ValueError, match=f"kernel_size must be odd and positive, got {side}"):
        ConvPositionEncoding(8, side)
