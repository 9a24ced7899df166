"""Cross-shaped window attention as a layer: half of the heads in vertical stripes, half in horizontal ones."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import nn

from visionattn.kernels import window_attention_packed
from visionattn.layers.padding import crop, pad_to_multiple


@register_notrace_module  # the stripes' lengths are those of the map
class CrossShapedAttention(nn.Module):
    """Multi-head attention within stripes over the whole height, and over the whole width, of a map (CSWin, arXiv
    2107.00652). To each stripe's output a depthwise 3x3 convolution of its own values is added, zeros around it.

    Where the stripes do not divide the map the last ones hold less. A stripe's length is a constant of a compiled or
    exported graph: it is tied to the size of its images.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads, an even number of them for stripes.
        width: of the stripes; None for one window that is the whole map, for all heads.
        qkv_bias: bias of the projection to queries, keys and values.
        proj_drop: dropout after the output projection.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: where ``dim`` is no multiple of ``num_heads``, ``width`` below 1, or ``num_heads`` odd for stripes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        width: int | None = 7,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
        if width is not None and (width < 1 or num_heads % 2):
            raise ValueError(f"stripes must be at least 1 wide, and heads even for them, got {width} and {num_heads}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.width = width
        branches = 1 if width is None else 2
        part = dim // branches
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = nn.ModuleList(nn.Conv2d(part, part, 3, padding=1, groups=part, **dd) for _ in range(branches))
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, width={self.width}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (int(n) for n in x.shape[1:3])
        windows = [(height, width)] if self.width is None else [(height, self.width), (self.width, width)]
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        parts = [
            window_attention_packed(part, window).flatten(-2) + _within(lepe, part[:, :, :, 2].flatten(-2), window)
            for part, window, lepe in zip(qkv.chunk(len(windows), 4), windows, self.lepe)
        ]
        return self.proj_drop(self.proj(torch.cat(parts, -1)))


def _within(convolution: nn.Module, x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C], each window of it convolved by itself."""
    padded = pad_to_multiple(x, window)
    rows, columns = (n // w for n, w in zip(padded.shape[1:3], window))
    y = padded.unflatten(2, (columns, window[1])).unflatten(1, (rows, window[0])).permute(0, 1, 3, 5, 2, 4)
    y = convolution(y.flatten(0, 2)).unflatten(0, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)
    y = y.flatten(3, 4).flatten(1, 2)  # [B, H', W', C]
    return y if padded is x else crop(y, *x.shape[1:3])
