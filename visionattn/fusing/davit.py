"""timm's DaViT (arXiv 2204.03645): windows read in place, and attention between channels in two passes."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from timm.models import davit as timms
from torch import nn

from visionattn.fusing.recipe import Part, Recipe, empty_like
from visionattn.kernels import channel_attention, channel_attention_packed, explain, window_attention_packed
from visionattn.kernels._dispatch import Explanation
from visionattn.layers.padding import crop, pad_to_multiple


@register_notrace_module  # padding branches on sizes
class FusedWindowAttention(timms.WindowAttention):
    """timm's ``WindowAttention`` over a whole map instead of windows cut from it.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        padded = pad_to_multiple(x, self.window_size)
        qkv = self.qkv(padded).unflatten(-1, (3, self.num_heads, -1))
        out = self.proj(window_attention_packed(qkv, self.window_size).flatten(-2))
        return out if padded is x else crop(out, height, width)


class FusedSpatialBlock(timms.SpatialBlock):
    """timm's ``SpatialBlock`` without partition and reverse.

    Shapes: [B, dim, H, W] -> [B, dim, H, W].
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe1(x).permute(0, 2, 3, 1)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x + self.drop_path2(self.mlp(self.norm2(x)))).permute(0, 3, 1, 2)


@register_notrace_module
class FusedChannelAttention(timms.ChannelAttention):
    """timm's ``ChannelAttention`` on the fused op.

    Shapes: [B, N, dim] -> [B, N, dim].
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(channel_attention_packed(self.qkv(x)[:, None], self.num_heads)[:, 0])


@register_notrace_module
class FusedChannelAttentionV2(timms.ChannelAttentionV2):
    """timm's ``ChannelAttentionV2``, the same op with q, k and v in other parts and another scale (Florence-2's).

    Shapes: [B, N, dim] -> [B, N, dim].
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        q = q * (x.shape[1] if self.dynamic_scale else self.head_dim) ** -0.5
        return self.proj(channel_attention(v, q, k, self.groups, scale=1.0)[:, 0])


def _asks_windows(block: nn.Module) -> Explanation:
    attn = block.attn
    heads = attn.num_heads
    qkv = empty_like(attn, 1, *block.window_size, 3, heads, attn.qkv.out_features // (3 * heads))
    return explain("window_attention_packed", qkv, block.window_size)


def _asks_channels(attn: nn.Module) -> Explanation:
    groups = attn.groups if isinstance(attn, timms.ChannelAttentionV2) else attn.num_heads
    return explain("channel_attention_packed", empty_like(attn, 1, 1, 1, attn.qkv.out_features), groups)


def _refuses(block: nn.Module) -> str | None:
    return None if block.mlp is not None else "it has no MLP, a form that timm itself cannot run"


RECIPES = (
    Recipe(
        "DaViT windows",
        timms.SpatialBlock,
        FusedSpatialBlock,
        _asks_windows,
        (Part("attn", timms.WindowAttention, FusedWindowAttention),),
        ("attn.softmax",),
        _refuses,
    ),
    Recipe("DaViT channels", timms.ChannelAttention, FusedChannelAttention, _asks_channels),
    Recipe("DaViT channels, second form", timms.ChannelAttentionV2, FusedChannelAttentionV2, _asks_channels),
)
