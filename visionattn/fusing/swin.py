"""timm's Swin (v1, arXiv 2103.14030): the way from roll to roll of a block in one kernel."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from timm.models import swin_transformer as timms
from torch import nn

from visionattn.fusing.recipe import Part, Recipe, empty_like
from visionattn.kernels import explain, window_attention_packed
from visionattn.kernels._dispatch import Explanation
from visionattn.layers.padding import crop, pad_to_multiple
from visionattn.layers.window import table_by_heads


@register_notrace_module  # padding branches on sizes
class FusedSwinAttention(timms.WindowAttention):
    """timm's ``WindowAttention`` over a whole map instead of windows cut from it.

    Shapes: [B, H, W, dim] -> [B, H, W, dim]; ``shift``: rows and columns by which timm would roll the map.
    """

    def forward(self, x: torch.Tensor, shift: tuple[int, int] = (0, 0)) -> torch.Tensor:
        height, width = x.shape[1:3]
        window = self.window_size
        padded = pad_to_multiple(x, window)
        # timm rolls a map before it pads it, which puts the padding between what it rolls around
        ragged = any(shift) and padded.shape != x.shape
        if ragged:
            padded = pad_to_multiple(x.roll((-shift[0], -shift[1]), (1, 2)), window).roll(shift, (1, 2))
        qkv = self.qkv(padded).unflatten(-1, (3, self.num_heads, -1))
        table = table_by_heads(self.relative_position_bias_table, window)
        out = window_attention_packed(qkv, window, shift, bias=table)
        out = self.proj_drop(self.proj(out.flatten(-2)))
        if ragged:
            return crop(out.roll((-shift[0], -shift[1]), (1, 2)), height, width).roll(shift, (1, 2))
        return out if padded is x else crop(out, height, width)


class FusedSwinBlock(timms.SwinTransformerBlock):
    """timm's ``SwinTransformerBlock`` without roll, partition, mask and reverse: the kernel's addresses do that."""

    def _attn(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, self.shift_size)


def _asks(block: nn.Module) -> Explanation:
    attn = block.attn
    heads, (rows, columns) = attn.num_heads, attn.window_size
    qkv = empty_like(attn, 1, rows, columns, 3, heads, attn.qkv.out_features // (3 * heads))
    return explain("window_attention_packed", qkv, attn.window_size)


def _refuses(block: nn.Module) -> str | None:
    mask = block.attn_mask
    if block.dynamic_mask or (mask is None and not any(block.shift_size)) or (mask is not None and mask.is_meta):
        return None
    expected = None if mask is None else block.get_attn_mask(device=mask.device, dtype=mask.dtype)
    if mask is None or expected is None or not torch.equal(mask, expected):
        return "attn_mask is not that of its shift"
    return None


RECIPES = (
    Recipe(
        "Swin windows",
        timms.SwinTransformerBlock,
        FusedSwinBlock,
        _asks,
        (Part("attn", timms.WindowAttention, FusedSwinAttention),),
        ("attn.softmax", "attn.attn_drop"),
        _refuses,
    ),
)
