"""BiFormer's two attentions as layers: routed between regions, and global; each with a local term beside it."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, to_2tuple
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from visionattn.kernels import routed_attention_packed_qk
from visionattn.kernels.routing.geometry import make_geometry
from visionattn.layers.memory import nchw
from visionattn.layers.padding import crop, pad_to_multiple
from visionattn.layers.position import filtered


def choose_regions(qk: torch.Tensor, regions: tuple[int, int], topk: int) -> torch.Tensor:
    """The regions that each region attends to: those of the largest products of mean query and mean key.

    Args:
        qk: [B, H, W, 2, heads, D], H and W multiples of ``regions``. No gradient goes through the choice.
        regions: (rows, columns) into which the map is cut.
        topk: how many are chosen, the same for all heads.

    Returns int64 [B, rows * columns, topk], in no particular order.
    """
    cut = qk.detach().flatten(4).unflatten(2, (regions[1], -1)).unflatten(1, (regions[0], -1))
    means = cut.mean((2, 4)).flatten(1, 2)  # [B, rows * columns, 2, heads * D]
    queries, keys = means.unbind(2)
    return (queries @ keys.transpose(1, 2)).topk(topk, sorted=False).indices


def local_conv(dim: int, kernel_size: int, **dd) -> nn.Conv2d:
    """A depthwise convolution that keeps the size of maps."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)


def on_map(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A module for NCHW maps on [B, H, W, C]."""
    return conv(nchw(x)).permute(0, 2, 3, 1)


@register_notrace_module  # padding branches on sizes
class RoutedAttention(nn.Module):
    """Multi-head attention of each region to the regions chosen for it, and a depthwise convolution of the values
    (BiFormer, arXiv 2303.08810).

    A map that the regions do not divide is padded with zeros at the bottom and right before the projections; padding
    counts in the regions' means, takes part in the attention and is cut off afterwards, as with the official code's
    ``auto_pad``.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        regions: into how many the map is cut along each axis, an int or a (rows, columns) pair, whatever its size.
        topk: how many regions each of them attends to, one choice for all heads: see :func:`choose_regions`.
        qkv_bias: biases of the projections to queries, keys and values.
        lepe_size: side of the depthwise convolution, an odd number.
        proj_drop: dropout after the output projection.

    Logits are scaled by ``dim ** -0.5``, not by the head dimension's, as in the published models.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_heads`` or a number is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        regions: int | tuple[int, int] = 7,
        topk: int = 4,
        qkv_bias: bool = True,
        lepe_size: int = 5,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check(dim, num_heads, lepe_size)
        self.num_heads = num_heads
        self.regions = to_2tuple(regions)
        count = make_geometry(self.regions).count  # names what is out of range
        if not 1 <= topk <= count:
            raise ValueError(f"topk must lie in 1..{count}, the number of regions, got {topk}")
        self.topk = topk
        self.scale = dim**-0.5
        dd = {"device": device, "dtype": dtype}
        # the values apart: the convolution reads them too, and gradients that meet in one packed tensor would be copied
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.lepe = local_conv(dim, lepe_size, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, regions={self.regions}, topk={self.topk}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        padded = pad_to_multiple(x, self.regions)
        qk = self.qk(padded).unflatten(-1, (2, self.num_heads, -1))
        v = self.v(padded)
        routes = choose_regions(qk, self.regions, self.topk)
        values = v.unflatten(-1, (self.num_heads, -1))
        out = routed_attention_packed_qk(qk, values, routes, self.regions, self.scale).flatten(-2)
        out = self.proj_drop(self.proj(out + filtered(self.lepe, v)))
        return out if padded is x else crop(out, height, width)


class GlobalAttention(nn.Module):
    """Multi-head attention of all positions to all, and a depthwise convolution of its input (BiFormer's last stage).

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        qkv_bias: bias of the projection to queries, keys and values.
        lepe_size: side of the depthwise convolution, an odd number.
        proj_drop: dropout after the output projection.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_heads`` or a number is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        lepe_size: int = 5,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check(dim, num_heads, lepe_size)
        self.num_heads = num_heads
        dd = {"device": device, "dtype": dtype}
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = local_conv(dim, lepe_size, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))  # [B, H * W, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        out = out.view(x.shape) + filtered(self.lepe, x)
        return self.proj_drop(self.proj(out))


def _check(dim: int, num_heads: int, lepe_size: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
    if lepe_size < 1 or lepe_size % 2 == 0:
        raise ValueError(f"lepe_size must be a positive odd number, got {lepe_size}")
