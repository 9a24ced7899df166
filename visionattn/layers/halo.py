"""Halo attention as a layer: projections, the tables of relative positions, and strides."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, to_2tuple, trunc_normal_
from torch import nn

from visionattn.kernels import halo_attention_packed_kv
from visionattn.kernels.halo.geometry import make_geometry
from visionattn.layers.memory import nchw


class RelativeTables(nn.Module):
    """Two tables of relative positions, of rows and of columns, shared by all heads (arXiv 2103.12731).

    Args:
        window: keys of a block along each axis; the tables are [2 * window - 1, head_dim].
        head_dim: of the queries that they are multiplied with.
    """

    def __init__(self, window: tuple[int, int], head_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.height_rel = nn.Parameter(torch.empty(2 * window[0] - 1, head_dim, **dd))
        self.width_rel = nn.Parameter(torch.empty(2 * window[1] - 1, head_dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both tables anew."""
        for table in (self.height_rel, self.width_rel):
            trunc_normal_(table, std=table.shape[1] ** -0.5)

    def no_weight_decay(self) -> set[str]:
        """Parameters that a decaying optimiser should leave alone: the tables play the part of biases."""
        return {"height_rel", "width_rel"}


@register_notrace_module  # the op cuts maps by their sizes
class HaloAttention(nn.Module):
    """Multi-head attention of blocks to themselves and a halo around them (HaloNet, arXiv 2103.12731).

    Keys and values outside the map are zeros that take softmax weight, as in the published models; so is what the last
    blocks lack on a map that the blocks do not divide. There is no projection of the output.

    Args:
        dim: channels of the map.
        dim_out: channels of the values and of the output, a multiple of ``num_heads``; ``dim`` if None.
        stride: by which the map shrinks. Queries are taken at this distance where it divides the block, else the output
            is averaged.
        num_heads: attention heads.
        dim_head: channels of a head's queries and keys; ``dim_out // num_heads`` if None.
        block_size, halo_size: an int or an (h, w) pair: positions of a block, and those seen on each side of it.
        qkv_bias: biases of the projections.

    Shapes: [B, H, W, dim] -> [B, ceil(H / stride), ceil(W / stride), dim_out].

    Raises:
        ValueError: at construction, where ``dim_out`` is no multiple of ``num_heads`` or a size is out of range.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        block_size: int | tuple[int, int] = 8,
        halo_size: int | tuple[int, int] = 3,
        qkv_bias: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim_out % num_heads:
            raise ValueError(f"dim_out must be a multiple of num_heads, got {dim_out} and num_heads {num_heads}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.block_size = to_2tuple(block_size)
        self.halo_size = to_2tuple(halo_size)
        strided = all(n % stride == 0 for n in self.block_size)
        self.stride = stride if strided else 1
        geometry = make_geometry(self.block_size, self.halo_size, self.stride)  # names what is out of range
        self.dim_out = dim_out
        dim_head = dim_out // num_heads if dim_head is None else dim_head
        self.q = nn.Conv2d(dim, num_heads * dim_head, 1, stride=self.stride, bias=qkv_bias, **dd)
        self.kv = nn.Conv2d(dim, num_heads * dim_head + dim_out, 1, bias=qkv_bias, **dd)
        self.pos_embed = RelativeTables(geometry.window, dim_head, **dd)
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        self.pool = nn.Identity() if strided else pool
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections anew; the tables belong to themselves."""
        for conv in (self.q, self.kv):
            trunc_normal_(conv.weight, std=conv.in_channels**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, block={self.block_size}, halo={self.halo_size}, stride={self.stride}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nchw(x)
        q, kv = (conv(x).permute(0, 2, 3, 1).unflatten(-1, (self.num_heads, -1)) for conv in (self.q, self.kv))
        tables = self.pos_embed.height_rel, self.pos_embed.width_rel
        out = halo_attention_packed_kv(q, kv, self.block_size, self.halo_size, *tables, self.stride).flatten(-2)
        return self.pool(nchw(out)).permute(0, 2, 3, 1)
