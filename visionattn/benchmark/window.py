"""Window attention and timm's path from qkv to output on the same tensors."""

from collections.abc import Callable

import torch
from timm.layers import set_fused_attn
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from visionattn.kernels.window import window_attention_packed

from .beside_timm import Side
from .cases import WindowCase


class Inputs:
    """Random tensors of one case: packed q, k and v, and a table of relative positions as models learn it."""

    def __init__(self, case: WindowCase, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        batch, height, width, heads, dim = case.shape
        self.packed = draw(batch, height, width, 3, heads, dim).requires_grad_()
        self.table = draw((2 * case.window - 1) ** 2, heads).requires_grad_()
        self.grad = draw(*case.shape)


def timms(case: WindowCase, x: Inputs) -> Callable[[], Tensor]:
    """timm's own parts from qkv to output: roll, partition, attention under a mask, reverse, roll back."""
    set_fused_attn(True)
    batch, height, width, heads, dim = case.shape
    block = SwinTransformerBlock(
        heads * dim,
        (height, width),
        heads,
        window_size=case.window,
        shift_size=case.shift,
        device=x.packed.device,
        dtype=x.packed.dtype,
    )
    attn, window, shift = block.attn, block.window_size, block.shift_size
    attn.qkv, attn.proj = nn.Identity(), nn.Identity()
    del attn.relative_position_bias_table
    attn.relative_position_bias_table = x.table
    mask = block.attn_mask

    def step() -> Tensor:
        y = x.packed.flatten(3)  # the projections in front of and behind this belong to the layer
        if any(shift):
            y = torch.roll(y, (-shift[0], -shift[1]), (1, 2))
        y = attn(window_partition(y, window).flatten(1, 2), mask)
        y = window_reverse(y.unflatten(1, window), window, height, width)
        if any(shift):
            y = torch.roll(y, shift, (1, 2))
        return y.unflatten(3, (heads, dim))

    return step


def sides(case: WindowCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op with the table as the layer passes it, and without any bias; timm's path."""
    x = Inputs(case, device, dtype)

    def biased() -> Tensor:
        table = x.table.t().unflatten(1, [2 * case.window - 1] * 2)
        return window_attention_packed(x.packed, case.window, case.shift, bias=table)

    def plain() -> Tensor:
        return window_attention_packed(x.packed, case.window, case.shift)

    wanted = [x.packed, x.table]
    return {
        "ours": Side(biased, wanted, x.grad),
        "ours plain": Side(plain, [x.packed], x.grad),
        "timm": Side(timms(case, x), wanted, x.grad),
    }
