"""Varied window attention as a layer: projections, the prediction of places, relative bias."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, to_2tuple, trunc_normal_
from torch import nn
from torch.nn.functional import leaky_relu, linear

from visionattn.kernels import varied_window_attention_packed
from visionattn.kernels.varied_window import reference
from visionattn.kernels.window.geometry import make_geometry
from visionattn.layers.attn_drop import warn_attn_drop
from visionattn.layers.padding import pad_to_multiple


class PlacesOfWindows(nn.Conv2d):
    """Where each head of a window looks, predicted from the mean of the window's tokens (VSA, arXiv 2204.08446).

    A 1x1 convolution of the activated means that starts at zero, with which every window looks at itself.

    Args:
        dim: channels of the map.
        num_heads: attention heads.
        window_size: (rows, columns) of a window.

    Shapes: [B, H, W, dim] -> [B, M, N, num_heads, 4] for M x N windows, as the kernels take it: displacements of rows
    and columns in positions, and by how much more than 1 rows and columns are stretched. float32 where it is not
    float64. Each head has four of the convolution's channels in the published order: displacement and stretch, columns
    before rows. Along an axis of n windows, as many positions long as they, 2 of a displacement are (length - 1) / n
    positions.
    """

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], device=None, dtype=None) -> None:
        self.num_heads, self.window_size = num_heads, window_size
        super().__init__(dim, 4 * num_heads, 1, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Every window looks at itself."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(x, self.window_size)
        height, width = x.shape[1:3]
        means = x.unflatten(2, (-1, self.window_size[1])).unflatten(1, (-1, self.window_size[0])).mean((2, 4))
        found = linear(leaky_relu(means), self.weight.flatten(1), self.bias)
        found = found.to(torch.promote_types(found.dtype, torch.float32)).unflatten(-1, (self.num_heads, 4))
        columns, rows, stretch_columns, stretch_rows = found.unbind(-1)
        rows = rows * ((height - 1) / (2 * found.shape[1]))
        columns = columns * ((width - 1) / (2 * found.shape[2]))
        return torch.stack((rows, columns, stretch_rows, stretch_columns), -1)


@register_notrace_module  # padding branches on sizes
class VariedWindowAttention(nn.Module):
    """Multi-head attention of windows to tokens that are sampled where each head of a window predicts (VSA, arXiv
    2204.08446).

    Outside the map, and so where it lacks what windows do not divide, keys and values are zeros that take softmax
    weight, as in the official code; for the means of windows the map is filled up with zeros at the bottom and right.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        window_size: an int or an (h, w) pair, positive.
        qkv_bias: bias of the projection to queries, keys and values.
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
        qkv_bias: bool = True,
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
        make_geometry(self.window_size)  # names what is out of range

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.places = PlacesOfWindows(dim, num_heads, self.window_size, **dd)
        window_h, window_w = self.window_size
        # displacements query minus key in reading order, as if keys lay at the window's own positions
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_h - 1) * (2 * window_w - 1), num_heads, **dd)
        )
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        if attn_drop > 0:
            warn_attn_drop(attn_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the relative table anew; projections and places belong to themselves."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that a decaying optimiser should leave alone: the table is a set of biases."""
        return {"relative_position_bias_table"}

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window_size}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        sampling = self.places(x)
        table = self.relative_position_bias_table.t().unflatten(1, [2 * n - 1 for n in self.window_size])
        if self.training and self.attn_drop > 0:
            geometry = make_geometry(self.window_size)
            out = reference.varied_window_attention(
                *qkv.unbind(3), sampling, table, geometry, self.head_dim**-0.5, self.attn_drop
            )
        else:
            out = varied_window_attention_packed(qkv, self.window_size, sampling, table)
        return self.proj_drop(self.proj(out.flatten(-2)))
