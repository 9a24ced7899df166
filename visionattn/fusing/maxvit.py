"""timm's MaxViT and MaxxViT (arXiv 2204.01697): blocks and grids read in place, with any of timm's three biases."""

from __future__ import annotations

import torch
from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp, register_notrace_module
from timm.models import maxxvit as timms
from torch import nn

from visionattn.fusing.recipe import Part, Recipe, empty_like
from visionattn.kernels import explain, window_attention_packed
from visionattn.kernels._dispatch import Explanation
from visionattn.layers.window import table_by_heads


def bias_of(rel_pos: nn.Module | None) -> torch.Tensor | None:
    """What one of timm's relative positions adds to the logits, as the kernels read it: a table where it is one."""
    if rel_pos is None:
        return None
    if isinstance(rel_pos, RelPosBias):
        return table_by_heads(rel_pos.relative_position_bias_table, tuple(rel_pos.window_size))
    if isinstance(rel_pos, RelPosBiasTf):  # counts key minus query
        return rel_pos.relative_position_bias_table.flip(1, 2)
    return rel_pos.get_bias().squeeze(0)


def why_not_bias(rel_pos: nn.Module | None) -> str | None:
    """Why :func:`bias_of` cannot speak for ``rel_pos``, or None."""
    if rel_pos is None or type(rel_pos) in (RelPosBias, RelPosBiasTf, RelPosMlp):
        tokens = getattr(rel_pos, "prefix_tokens", 0)
        return f"its relative positions count {tokens} tokens beside the map's" if tokens else None
    return f"its relative positions are of class {type(rel_pos).__name__}, which is none of timm's three"


@register_notrace_module  # the op branches on sizes
class FusedPartitionAttention(timms.AttentionCl):
    """timm's ``AttentionCl`` over a whole map instead of blocks or grids cut from it.

    Shapes: [B, H, W, dim] -> [B, H, W, dim_out]; ``window``: rows and columns of a block or grid; ``partition``:
    "block" or "grid".
    """

    def forward(self, x: torch.Tensor, window: tuple[int, int], partition: str) -> torch.Tensor:
        qkv = self.qkv(x)
        if self.head_first:
            qkv = qkv.unflatten(-1, (self.num_heads, 3, self.dim_head)).transpose(3, 4)
        else:
            qkv = qkv.unflatten(-1, (3, self.num_heads, self.dim_head))
        out = window_attention_packed(qkv, window, 0, partition, bias_of(self.rel_pos))
        return self.proj_drop(self.proj(out.flatten(-2)))


class FusedPartition(timms.PartitionAttentionCl):
    """timm's ``PartitionAttentionCl`` without partition and reverse."""

    def _partition_attn(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, self.partition_size, "block" if self.partition_block else "grid")


class FusedParallelPartition(timms.ParallelPartitionAttention):
    """timm's ``ParallelPartitionAttention`` without partition and reverse."""

    def _partition_attn(self, x: torch.Tensor) -> torch.Tensor:
        block = self.attn_block(x, self.partition_size, "block")
        return torch.cat([block, self.attn_grid(x, self.partition_size, "grid")], -1)


def _asks(name: str, module: nn.Module) -> Explanation:
    attn = getattr(module, name)
    qkv = empty_like(attn, 1, *module.partition_size, 3, attn.num_heads, attn.dim_head)
    return explain("window_attention_packed", qkv, module.partition_size)


def _recipe(kind: str, original: type[nn.Module], fused: type[nn.Module], *names: str) -> Recipe:
    return Recipe(
        kind,
        original,
        fused,
        lambda module: _asks(names[0], module),
        tuple(Part(name, timms.AttentionCl, FusedPartitionAttention) for name in names),
        tuple(f"{name}.{part}" for name in names for part in ("attn_drop",)),
        lambda module: next(filter(None, (why_not_bias(getattr(module, name).rel_pos) for name in names)), None),
    )


RECIPES = (
    _recipe("MaxViT blocks and grids", timms.PartitionAttentionCl, FusedPartition, "attn"),
    _recipe(
        "MaxViT blocks and grids side by side",
        timms.ParallelPartitionAttention,
        FusedParallelPartition,
        *("attn_block", "attn_grid"),
    ),
)
