"""Channel attention, timm's path from qkv to output, and other eager forms on the same tensor."""

import torch
from timm.models.davit import ChannelAttention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from visionattn.kernels.channel import channel_attention_packed

from .beside_timm import Given, Side
from .cases import ChannelCase


def sides(case: ChannelCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op and four other ways to write it, each from the qkv of one projection to what the next one reads."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    batch, height, width, groups, dim = case.shape
    tokens, channels, scale = height * width, groups * dim, dim**-0.5
    # logits are sums over all tokens: numbers of this size leave the softmax soft
    qkv = (tokens**-0.25 * draw(batch, height, width, 3 * channels)).requires_grad_()
    grad = draw(batch, height, width, channels)

    def by_group(order: tuple[int, ...]) -> tuple[Tensor, ...]:
        return qkv.view(batch, tokens, 3, groups, dim).permute(order).unbind(0)

    def ours() -> Tensor:
        return channel_attention_packed(qkv, groups)

    layer = ChannelAttention(channels, groups, device=device, dtype=dtype)
    layer.qkv, layer.proj = Given(qkv.flatten(1, 2)), nn.Identity()

    def timms() -> Tensor:
        return layer(grad.flatten(1, 2)).view_as(grad)  # of its input only the shape counts

    def sdpa() -> Tensor:
        q, k, v = by_group((2, 0, 3, 4, 1))  # [B, groups, D, N]: channels stand where tokens usually do
        out = scaled_dot_product_attention(k, v, q, scale=scale)
        return out.permute(0, 3, 1, 2).reshape(grad.shape)

    def tokens_first() -> Tensor:
        q, k, v = by_group((2, 0, 3, 1, 4))  # [B, groups, N, D]
        weights = (scale * (k.transpose(-1, -2) @ v)).softmax(-1)
        return (q @ weights.transpose(-1, -2)).transpose(1, 2).reshape(grad.shape)

    def channels_first() -> Tensor:
        turned = qkv.view(batch, tokens, 3 * channels).transpose(1, 2).contiguous()
        q, k, v = turned.view(batch, 3, groups, dim, tokens).unbind(1)  # [B, groups, D, N]
        weights = (scale * (k @ v.transpose(-1, -2))).softmax(-1)
        return (weights @ q).view(batch, channels, tokens).transpose(1, 2).reshape(grad.shape)

    forms = {
        "ours": ours,
        "timm": timms,
        "sdpa": sdpa,
        "tokens first": tokens_first,
        "channels first": channels_first,
    }
    return {name: Side(form, [qkv], grad) for name, form in forms.items()}
