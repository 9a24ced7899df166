"""Window attention as a layer: projections, relative bias, and maps that the windows do not divide."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, to_2tuple, trunc_normal_
from torch import nn

from visionattn.kernels import window_attention_packed
from visionattn.kernels.window import reference
from visionattn.kernels.window.geometry import make_geometry
from visionattn.layers.attn_drop import warn_attn_drop
from visionattn.layers.padding import crop, pad_to_multiple
from visionattn.layers.relative_bias import lay_out, relative_index, relative_inverse


@register_notrace_module  # padding and shift branch on sizes
class WindowAttention(nn.Module):
    """Multi-head attention within windows, shifted or not (Swin, arXiv 2103.14030).

    A map that the windows do not divide is padded with zeros at the bottom and right before the projection; padding
    takes part in the attention and is cut off afterwards, as in the official code. Along an axis of which one window
    holds all, nothing is shifted.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        window_size: an int or an (h, w) pair, positive.
        shift: where the first window starts, an int or an (h, w) pair, 0 to ``window_size - 1``.
        qkv_bias: bias of the projection to queries, keys and values.
        rel_bias: whether there is a learned table of relative positions ``relative_position_bias_table``
            [(2 * window_h - 1) * (2 * window_w - 1), num_heads] of displacements query minus key, see
            :func:`~visionattn.layers.relative_bias.relative_index`.
        attn_drop: dropout of attention probabilities in training. No fused kernel does this: with a rate above 0,
            training gathers every window in plain PyTorch, and construction warns once.
        proj_drop: dropout after the output projection.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_heads`` or a size is out of range.
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
        make_geometry(self.window_size, self.shift)  # names what is out of range

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        table = index = inverse = None
        if rel_bias:
            window_h, window_w = self.window_size
            table = nn.Parameter(torch.empty((2 * window_h - 1) * (2 * window_w - 1), num_heads, **dd))
            index, inverse = relative_index(self.window_size, device), relative_inverse(self.window_size, device)
        self.relative_position_bias_table = table
        self.register_buffer("relative_position_index", index, persistent=False)
        self.register_buffer("relative_position_inverse", inverse, persistent=False)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        if attn_drop > 0:
            warn_attn_drop(attn_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the relative table anew and fills its indices; the projections belong to themselves."""
        if self.relative_position_bias_table is not None:
            trunc_normal_(self.relative_position_bias_table, std=0.02)
            device = self.relative_position_index.device
            self.relative_position_index.copy_(relative_index(self.window_size, device))
            self.relative_position_inverse.copy_(relative_inverse(self.window_size, device))

    def no_weight_decay(self) -> set[str]:
        """Parameters that a decaying optimiser should leave alone: the table is a set of biases."""
        return set() if self.relative_position_bias_table is None else {"relative_position_bias_table"}

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window_size}, shift={self.shift}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        shift = tuple(0 if n <= w else s for n, w, s in zip((height, width), self.window_size, self.shift))
        padded = pad_to_multiple(x, self.window_size)
        qkv = self.qkv(padded).unflatten(-1, (3, self.num_heads, self.head_dim))
        bias = self._bias()
        if self.training and self.attn_drop > 0:
            geometry = make_geometry(self.window_size, shift)
            q, k, v = qkv.unbind(3)
            out = reference.window_attention(q, k, v, bias, geometry, self.head_dim**-0.5, self.attn_drop)
        else:
            out = window_attention_packed(qkv, self.window_size, shift, bias=bias)
        out = self.proj_drop(self.proj(out.flatten(-2)))
        return out if padded is x else crop(out, height, width)

    def _bias(self) -> torch.Tensor | None:
        """The table laid out for the pairs of a window, [num_heads, N, N]."""
        if self.relative_position_bias_table is None:
            return None
        return lay_out(self.relative_position_bias_table, self.relative_position_index, self.relative_position_inverse)
