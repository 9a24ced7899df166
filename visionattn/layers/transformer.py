"""The pre-norm transformer block on maps, around any attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import DropPath, LayerScale, Mlp
from torch import nn


class TransformerBlock(nn.Module):
    """Pre-norm attention and a pre-norm MLP, each with layer scale and stochastic depth where asked for.

    Args:
        dim: channels of the map.
        attn: ``attn(x, *context)``, [B, H, W, dim] -> [B, H, W, dim].
        mlp_ratio: hidden width of the MLP over ``dim``.
        layer_scale: initial layer scale, None for none.
        act_layer: activation of the MLP.
        proj_drop: dropout in the MLP.
        drop_path: rate of stochastic depth.
        norm_layer: normalisation over the last axis.

    Shapes: [B, H, W, dim] -> [B, H, W, dim]; further arguments go to the attention.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *context)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
