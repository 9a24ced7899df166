"""Injective linear attention as a layer: projections and the filters of its local residual."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import nn
from torch.nn.functional import linear

from visionattn.kernels import linear_attention_packed
from visionattn.layers.memory import plain


class GroupedLinear(nn.Conv1d):
    """A linear layer whose outputs see only the inputs of their own group; parameters as a convolution of width 1.

    Shapes: [B, in_features] -> [B, out_features].
    """

    def __init__(self, in_features: int, out_features: int, groups: int, device=None, dtype=None) -> None:
        super().__init__(in_features, out_features, 1, groups=groups, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)  # [groups, B, in]
        weight = self.weight.squeeze(2).unflatten(0, (self.groups, -1)).transpose(1, 2)  # [groups, in, out]
        y = torch.baddbmm(self.bias.unflatten(0, (self.groups, 1, -1)), x, weight)
        return plain(y.transpose(0, 1)).flatten(1)


@register_notrace_module  # the op's grid follows from sizes
class LinearAttention(nn.Module):
    """Multi-head injective linear attention over a whole map, with a local residual (InLine, arXiv 2412.06590).

    The residual is a 3x3 convolution of the values with filters that two small layers predict for every image and
    channel from the mean of its tokens.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        qkv_bias: bias of the projection to queries, keys and values.
        lepe: add a learned depthwise 3x3 convolution ``lepe`` of the values too (CSWin's position encoding).
        proj_drop: dropout after the output projection.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: where ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        lepe: bool = False,
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
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.residual = nn.Sequential(
            GroupedLinear(dim, dim, num_heads, **dd), nn.GELU(), GroupedLinear(dim, 9 * dim, num_heads, **dd)
        )
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if lepe else None
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"

    def forward(
        self, x: torch.Tensor, grid: tuple[int, int] | None = None, summary: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, H, W, dim] -> [B, H, W, dim].

        Args:
            x: the map, or tokens [B, 1, N, dim].
            grid: rows and columns of the map that the last tokens form, where that is not H and W: what comes before
                it, a class token, has no neighbours.
            summary: what the residual's filters are predicted from [B, dim]; the mean of x unless given.
        """
        heads = (self.num_heads, self.head_dim)
        filters = self.residual(x.mean((1, 2)) if summary is None else summary).unflatten(1, (*heads, 3, 3))
        if self.lepe is not None:
            filters = filters + self.lepe.weight.squeeze(1).unflatten(0, heads)  # one more filter, for all images
        x = linear_attention_packed(self.qkv(x).unflatten(-1, (3, *heads)), filters, grid).flatten(-2)
        if self.lepe is not None:  # its bias once behind the projection, not once a token
            return self.proj_drop(linear(x, self.proj.weight, linear(self.lepe.bias, self.proj.weight, self.proj.bias)))
        return self.proj_drop(self.proj(x))
