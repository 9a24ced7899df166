"""Stems and downsamplers: overlapping convolutions (NAT's), and patches (Swin's).

They take and give the layout that a :class:`~visionattn.models.pyramid.Pyramid` passes at that place: the stem turns an
image into an NCHW view of a channels-last map, the downsampler stays inside a stage and works on [B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from visionattn.layers.memory import channels_last, nchw
from visionattn.layers.padding import pad_to_multiple

_CONV_STRIDES = {4: (2, 2), 2: (2, 1), 1: (1, 1)}


def conv_strides(stride: int) -> tuple[int, int]:
    """Strides of the two convolutions of a stem with ``stride`` pixels to a token; ValueError for an unknown one."""
    if stride not in _CONV_STRIDES:
        raise ValueError(f"stem_stride must be one of {sorted(_CONV_STRIDES)}, got {stride!r}")
    return _CONV_STRIDES[stride]


class ConvStem(nn.Module):
    """Two 3x3 convolutions and a LayerNorm, without an activation between them (NAT, arXiv 2204.07143).

    Args:
        in_chans: channels of the image.
        dim: channels of the first map; the first convolution gives half of them.
        stride: pixels of the image per token of the map: 4 (both convolutions have stride 2), 2 (only the first, so
            that the costly second one works on the small map) or 1 (none).
        norm_layer: normalisation over the last axis.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for another stride.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 4,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        first, second = conv_strides(stride)
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=first, padding=1, **dd)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=second, padding=1, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from the first convolution on, so that every change of layout behind it is a free view
        x = channels_last(x)
        x = self.conv2(self.conv1(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvDownsample(nn.Module):
    """A 3x3 convolution and a LayerNorm (NAT, arXiv 2204.07143; with ``bias`` CSWin, arXiv 2107.00652).

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim].
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        stride: int = 2,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        bias: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=bias, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(nchw(x))
        return self.norm(x.permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """A convolution of patches that do not overlap and a LayerNorm (Swin, arXiv 2103.14030).

    Args:
        in_chans: channels of the image.
        dim: channels of the map.
        stride: side of a patch, pixels of the image per token of the map.
        norm_layer: normalisation over the last axis.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory. Patches
    that reach beyond the image are filled up with zeros at the bottom and right.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 4,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_chans, dim, stride, stride=stride, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), self.proj.stride).permute(0, 3, 1, 2)
        x = self.proj(channels_last(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Neighbours of a square side by side, a LayerNorm and a projection without bias (Swin, arXiv 2103.14030).

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim]; odd maps are filled up with zeros at the
    bottom and right.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        stride: int = 2,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.stride = stride
        self.norm = norm_layer(stride * stride * in_dim, **dd)
        self.reduction = nn.Linear(stride * stride * in_dim, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(x, (self.stride, self.stride))
        x = x.unflatten(2, (-1, self.stride)).unflatten(1, (-1, self.stride))  # [B, H', s, W', s, in_dim]
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # the published order: down each column of the square
        return self.reduction(self.norm(x))
