"""The reference is the definition: it must be right, differentiable twice, and linear in the tokens."""
import math

import pytest
import torch

from visionattn.kernels import channel_attention, channel_attention_packed
from visionattn.kernels.channel import reference

SHAPES = [(1, 1, 1, 1, 8), (2, 3, 5, 1, 8), (1, 7, 4, 3, 9), (2, 3, 4, 2, 16), (1, 1, 13, 2, 24)]


def _by_loop(q, k, v, scale):
    """One number of the output after another, of tensors [B, H, W, groups, D]."""
    batch, height, width, groups, dim = q.shape
    out = torch.empty_like(q)
    places = [(y, x) for y in range(height) for x in range(width)]
    for b in range(batch):
        for g in range(groups):
            for i in range(dim):
                logits = [scale * sum((k[b, y, x, g, i] * v[b, y, x, g, j]).item() for y, x in places)
                          for j in range(dim)]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                for y, x in places:
                    mixed = sum(w * q[b, y, x, g, j].item() for j, w in enumerate(weights))
                    out[b, y, x, g, i] = mixed / sum(weights)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_loop_over_channels_and_tokens(shape):
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    expected = _by_loop(q, k, v, 0.3)
    torch.testing.assert_close(reference.channel_attention(q, k, v, 0.3), expected, rtol=0, atol=1e-12)
    flat = [x.flatten(3) for x in (q, k, v)]
    torch.testing.assert_close(channel_attention(*flat, shape[3], 0.3), expected.flatten(3), rtol=0, atol=1e-12)
    packed = channel_attention_packed(torch.cat(flat, 3), shape[3], scale=0.3)
    torch.testing.assert_close(packed, expected.flatten(3), rtol=0, atol=1e-12)


def test_the_scale_is_that_of_a_groups_channels_unless_given():
    q, k, v = torch.randn(3, 2, 4, 3, 24, dtype=torch.float64)
    assert torch.equal(channel_attention(q, k, v, 3), channel_attention(q, k, v, 3, scale=8**-0.5))


def test_tokens_in_another_order_give_the_same_in_that_order():
    q, k, v = torch.randn(3, 1, 6, 5, 16, dtype=torch.float64)
    turned = [x.transpose(1, 2).flip(1) for x in (q, k, v)]
    expected = channel_attention(q, k, v, 2).transpose(1, 2).flip(1)
    torch.testing.assert_close(channel_attention(*turned, 2), expected)


def test_gradcheck_and_gradgradcheck_through_q_k_and_v():
    tensors = [torch.randn(1, 2, 3, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: channel_attention(*x, 2), tensors)
    assert torch.autograd.gradgradcheck(lambda *x: channel_attention(*x, 2), tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, drawn, channels_eager, rule):
    rule(lambda q, k, v: reference.channel_attention(q, k, v, 32**-0.5), drawn(2, 9, 7, 2, 32, 32, None, "cpu"), dtype,
         lambda q, k, v: channels_eager(q, k, v, 32**-0.5))


def test_work_grows_linearly_with_the_map():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (28, 56):
        x = torch.zeros(1, side, side, 64)
        with FlopCounterMode(display=False) as counter:
            channel_attention(x, x, x, 2)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * side**2 * 2 * 32 * 32 for side in (28, 56)]
