"""Channel attention as a layer: projections around the op."""

from __future__ import annotations

import torch
from torch import nn

from visionattn.kernels import channel_attention_packed


class ChannelAttention(nn.Module):
    """Attention between the channels of a group over all positions of a map (DaViT, arXiv 2204.03645).

    Args:
        dim: channels of the map, a multiple of ``num_groups``.
        num_groups: groups of channels, each of which attends within itself.
        qkv_bias: bias of the projection to queries, keys and values.
        proj_drop: dropout after the output projection.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_groups``.
    """

    def __init__(
        self,
        dim: int,
        num_groups: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or dim % num_groups:
            raise ValueError(f"dim must be a multiple of num_groups, got dim {dim} and num_groups {num_groups}")
        dd = {"device": device, "dtype": dtype}
        self.num_groups = num_groups
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_groups={self.num_groups}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_drop(self.proj(channel_attention_packed(self.qkv(x), self.num_groups)))
