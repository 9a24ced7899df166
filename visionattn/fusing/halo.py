"""timm's halo attention (arXiv 2103.12731): blocks and halos read in place, relative logits in the kernel."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from timm.layers.halo_attn import HaloAttn
from torch import nn

from visionattn.fusing.recipe import Recipe, empty_like
from visionattn.kernels import explain, halo_attention_packed_kv
from visionattn.kernels._dispatch import Explanation


@register_notrace_module  # the op cuts maps by their sizes
class FusedHaloAttn(HaloAttn):
    """timm's ``HaloAttn`` without unfolded keys and values.

    Shapes: [B, dim, H, W] -> [B, dim_out, H / stride, W / stride], in the memory format of the input.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)  # heads last, as the kernels read them
        q, kv = (conv(x).permute(0, 2, 3, 1).unflatten(-1, (self.num_heads, -1)) for conv in (self.q, self.kv))
        tables = self.pos_embed.height_rel, self.pos_embed.width_rel
        if self.scale_pos_embed:
            tables = tuple(table * self.scale for table in tables)
        out = halo_attention_packed_kv(q, kv, self.block_size, self.halo_size, *tables, self.block_stride)
        out = out.flatten(-2).permute(0, 3, 1, 2)
        return self.pool(out if kept else out.contiguous())


def _asks(attn: nn.Module) -> Explanation:
    heads, block, queries = attn.num_heads, attn.block_size, attn.block_size_ds
    q = empty_like(attn, 1, queries, queries, heads, attn.dim_head_qk)
    kv = empty_like(attn, 1, block, block, heads, attn.dim_head_qk + attn.dim_head_v)
    tables = attn.pos_embed.height_rel, attn.pos_embed.width_rel
    return explain("halo_attention_packed_kv", q, kv, block, attn.halo_size, *tables, attn.block_stride)


RECIPES = (Recipe("halo attention", HaloAttn, FusedHaloAttn, _asks, (), ("pos_embed",)),)
