"""Depthwise convolution by torch: the definition."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """x [B, H, W, C], weight [C, 1, side, side], bias [C] -> [B, H, W, C] in x's dtype."""
    found = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), None if bias is None else bias.to(x.dtype),
                     padding=weight.shape[-1] // 2, groups=x.shape[3])  # fmt: skip
    found = found.permute(0, 2, 3, 1)
    return x + found if residual else found
