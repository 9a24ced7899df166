"""Window attention as a layer: projections, relative bias, and maps that the windows do not divide."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, resize_rel_pos_bias_table, to_2tuple, trunc_normal_
from torch import nn

from visionattn.kernels import window_attention_packed, window_attention_packed_kv
from visionattn.kernels.window import reference
from visionattn.kernels.window.geometry import make_geometry
from visionattn.layers.attn_drop import warn_attn_drop
from visionattn.layers.padding import crop, pad_start, pad_to_multiple


@register_notrace_module  # padding and shift branch on sizes
class WindowAttention(nn.Module):
    """Multi-head attention within windows: blocks, shifted or not (Swin, arXiv 2103.14030), or grids of distant
    positions (MaxViT, arXiv 2204.01697), with queries of their own or one window of them for all (GC ViT, arXiv
    2206.09959).

    A map that the windows do not divide is padded with zeros at the bottom and right before the projection; padding
    takes part in the attention and is cut off afterwards, as in Swin's official code, unless ``attend_padding`` is
    False. Along an axis of which one window holds all, nothing is shifted.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        window_size: an int or an (h, w) pair, positive.
        shift: where the first window starts, an int or an (h, w) pair, 0 to ``window_size - 1``.
        qkv_bias: bias of the projection to queries, keys and values.
        rel_bias: whether there is a learned table of relative positions ``relative_position_bias_table``
            [(2 * window_h - 1) * (2 * window_w - 1), num_heads] of displacements query minus key in reading order.
        attn_drop: dropout of attention probabilities in training. No fused kernel does this: with a rate above 0,
            training gathers every window in plain PyTorch, and construction warns once.
        proj_drop: dropout after the output projection.
        partition: "block" or "grid" (a window's positions lie map / window apart).
        attend_padding: whether padding is a key; otherwise windows that reach beyond the map hold less.
        shared_query: the projection makes keys and values only, and the queries of every window are those that
            ``forward`` gets.

    Shapes: [B, H, W, dim] -> [B, H, W, dim]; with ``shared_query`` also query [B, window_h, window_w, dim], heads side
    by side.

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_heads`` or a size is out of range; in
            ``forward``, where a query is missing or not asked for.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift: int | tuple[int, int] = 0,
        qkv_bias: bool = True,
        rel_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        partition: str = "block",
        attend_padding: bool = True,
        shared_query: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = to_2tuple(window_size)
        self.shift = to_2tuple(shift)
        self.partition = partition
        make_geometry(self.window_size, self.shift, partition)  # names what is out of range
        if shared_query and self.shift != (0, 0):
            raise ValueError(f"shift must be 0 with shared_query, got {self.shift}")
        self.attend_padding = attend_padding
        self.shared_query = shared_query

        self.qkv = nn.Linear(dim, (2 if shared_query else 3) * dim, bias=qkv_bias, **dd)
        table = None
        if rel_bias:
            window_h, window_w = self.window_size
            table = nn.Parameter(torch.empty((2 * window_h - 1) * (2 * window_w - 1), num_heads, **dd))
        self.relative_position_bias_table = table
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        if attn_drop > 0:
            warn_attn_drop(attn_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the relative table anew; the projections belong to themselves."""
        if self.relative_position_bias_table is not None:
            trunc_normal_(self.relative_position_bias_table, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that a decaying optimiser should leave alone: the table is a set of biases."""
        return set() if self.relative_position_bias_table is None else {"relative_position_bias_table"}

    def extra_repr(self) -> str:
        said = f"num_heads={self.num_heads}, window={self.window_size}, shift={self.shift}"
        return f"{said}, partition={self.partition}, shared_query={self.shared_query}"

    def set_window_size(self, window_size: int | tuple[int, int]) -> None:
        """Another window from now on, the table resized to it as a checkpoint's would be; for layers without shift."""
        window, old = to_2tuple(window_size), self.window_size
        make_geometry(window, self.shift, self.partition)
        self.window_size = window
        table = self.relative_position_bias_table
        if table is None or window == old:
            return
        shape = ((2 * window[0] - 1) * (2 * window[1] - 1), self.num_heads)
        resized = resize_rel_pos_bias_table(table.detach(), window, shape, old)
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)

    def forward(self, x: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        if (query is not None) != self.shared_query:
            raise ValueError(
                f"query must be given if and only if shared_query is True, got {'none' if query is None else 'one'} "
                f"with shared_query={self.shared_query}"
            )
        height, width = x.shape[1:3]
        shift, start = zip(*map(_shift, (height, width), self.window_size, self.shift))
        padded = pad_to_multiple(x, self.window_size) if self.attend_padding else x
        padded = pad_start(padded, start)
        qkv = self.qkv(padded).unflatten(-1, (-1, self.num_heads, self.head_dim))
        if query is not None:
            query = query.unflatten(-1, (self.num_heads, self.head_dim))
            query = self._laid_out(query, *qkv.shape[1:3])
        out = self._attend(query, qkv, shift)
        out = self.proj_drop(self.proj(out.flatten(-2)))
        return out if padded is x else crop(out, height, width, start)

    def _attend(self, query: torch.Tensor | None, qkv: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        """[B, H, W, 3, heads, D], or queries and [B, H, W, 2, heads, D] -> [B, H, W, heads, D]."""
        window, bias = self.window_size, self._bias()
        if self.training and self.attn_drop > 0:
            q, k, v = qkv.unbind(3) if query is None else (query, *qkv.unbind(3))
            geometry = make_geometry(window, shift, self.partition)
            return reference.window_attention(q, k, v, bias, geometry, self.head_dim**-0.5, self.attn_drop)
        if query is None:
            return window_attention_packed(qkv, window, shift, self.partition, bias)
        return window_attention_packed_kv(query, qkv, window, shift, self.partition, bias)

    def _laid_out(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """A window of queries for the op: itself, and in graphs of any size a map of queries, each where it asks.

        The op tells the two by their sizes, which would tie a graph to maps of one window or to those of more.
        """
        if isinstance(height, int) and isinstance(width, int):
            return query
        geometry = make_geometry(self.window_size, self.shift, self.partition)
        for axis, n in enumerate((height, width)):
            query = query.index_select(1 + axis, reference.place(n, axis, geometry, query.device)[1])
        return query

    def _bias(self) -> torch.Tensor | None:
        table = self.relative_position_bias_table
        return None if table is None else table_by_heads(table, self.window_size)


def _shift(n: int, window: int, shift: int) -> tuple[int, int]:
    """The shift along an axis of ``n``, and how many positions to put in front of the map.

    An exported graph has one shift for all sizes: in front of a map that one window holds it puts as many positions as
    the first window, which is cut off, has, and so all of the map into the second.
    """
    if not shift:
        return 0, 0
    if isinstance(n, int):
        return (shift if n > window else 0), 0
    return shift, shift * torch.sym_max(1 - (n - 1) // window, 0)


def table_by_heads(table: torch.Tensor, window_size: tuple[int, int]) -> torch.Tensor:
    """Swin's relative table as the kernels read it: [(2h - 1) * (2w - 1), heads] -> [heads, 2h - 1, 2w - 1], a view."""
    return table.t().unflatten(1, [2 * n - 1 for n in window_size])
