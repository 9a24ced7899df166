"""A classifier with a convolution in front of its pooling."""

from __future__ import annotations

import torch
from timm.layers import ClassifierHead, ConvNormAct
from torch import nn

from visionattn.layers.memory import nchw


class ConvClassifierHead(ClassifierHead):
    """A normalised, activated 1x1 convolution, then timm's classifier: pooling, dropout, linear layer.

    Args:
        in_features: channels of the map.
        num_classes, pool_type, drop_rate: as of timm's ClassifierHead; ``num_classes=0`` gives pooled features.
        hidden_size: channels behind the convolution, ``num_features`` of the head.
        act_layer: the activation.

    Shapes: [B, H, W, in_features] -> [B, num_classes]; [B, H, W, hidden_size] with ``pool_type=""`` and no classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_size: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        act_layer: type[nn.Module] = nn.ReLU,
        input_fmt: str = "NHWC",
        device=None,
        dtype=None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(hidden_size, num_classes, pool_type, drop_rate, input_fmt=input_fmt, **dd)
        self.conv = ConvNormAct(in_features, hidden_size, 1, act_layer=act_layer, **dd)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        in_features: int | None = None,
        device=None,
        dtype=None,
    ) -> None:
        """A new classifier; the convolution stays unless ``reset_other``. ``in_features`` are those of the map."""
        if reset_other:
            self.conv = nn.Identity()
        kept = not isinstance(self.conv, nn.Identity)
        super().reset(num_classes, pool_type, in_features=None if kept else in_features, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.conv(nchw(x)).permute(0, 2, 3, 1)
        return super().forward(x, pre_logits)
