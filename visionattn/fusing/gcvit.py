"""timm's GC ViT (arXiv 2206.09959): local windows, and windows that share one query, read in place."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from timm.models import gcvit as timms
from torch import nn

from visionattn.fusing.maxvit import bias_of, why_not_bias
from visionattn.fusing.recipe import Part, Recipe, empty_like
from visionattn.kernels import explain, window_attention_packed, window_attention_packed_kv
from visionattn.kernels._dispatch import Explanation


@register_notrace_module  # the op branches on sizes
class FusedGlobalAttention(timms.WindowAttentionGlobal):
    """timm's ``WindowAttentionGlobal`` over a whole map instead of windows cut from it.

    Shapes: [B, H, W, dim], and q_global [B, window_h, window_w, dim] where it is used -> [B, H, W, dim].
    """

    def forward(self, x: torch.Tensor, q_global: torch.Tensor | None = None) -> torch.Tensor:
        window, heads, bias = self.window_size, self.num_heads, bias_of(self.rel_pos)
        qkv = self.qkv(x).unflatten(-1, (-1, heads, self.head_dim))
        if self.use_global and q_global is not None:
            q = q_global.reshape(x.shape[0], *window, heads, self.head_dim)
            out = window_attention_packed_kv(q, qkv, window, bias=bias)
        else:
            out = window_attention_packed(qkv, window, bias=bias)
        return self.proj_drop(self.proj(out.flatten(-2)))


class FusedGcVitBlock(timms.GlobalContextVitBlock):
    """timm's ``GlobalContextVitBlock`` without partition, repeated queries and reverse."""

    def _window_attn(self, x: torch.Tensor, q_global: torch.Tensor | None = None) -> torch.Tensor:
        return self.attn(x, q_global)


def _asks(block: nn.Module) -> Explanation:
    attn = block.attn
    qkv = empty_like(attn, 1, *attn.window_size, 3, attn.num_heads, attn.head_dim)
    return explain("window_attention_packed", qkv, attn.window_size)


RECIPES = (
    Recipe(
        "GC ViT windows",
        timms.GlobalContextVitBlock,
        FusedGcVitBlock,
        _asks,
        (Part("attn", timms.WindowAttentionGlobal, FusedGlobalAttention),),
        ("attn.attn_drop",),
        lambda block: why_not_bias(block.attn.rel_pos),
    ),
)
