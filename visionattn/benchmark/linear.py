"""Injective linear attention with its local residual, and eager PyTorch from the packed projection to the output."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from visionattn.kernels.linear import linear_attention_packed

from .beside_timm import Side
from .cases import LinearCase


def sides(case: LinearCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op, with filters as models predict them and without any; eager products and a grouped convolution."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    batch, rows, columns, heads, dim = case.shape
    packed = draw(batch, rows, columns, 3, heads, dim).requires_grad_()
    filters = draw(batch, heads, dim, 3, 3).requires_grad_()
    grad = draw(*case.shape)
    scale, tokens, channels = dim**-0.5, rows * columns, batch * heads * dim

    def ours() -> Tensor:
        return linear_attention_packed(packed, filters, (case.height, case.width))

    def ours_plain() -> Tensor:
        return linear_attention_packed(packed)

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, N, D] each -> [B, N, heads * D]."""
        half = (scale / tokens) ** 0.5
        matrix = (k.transpose(2, 3) * half) @ (v * half)
        y = q @ matrix + (1 - q @ k.mean(2, keepdim=True).transpose(2, 3) * scale) * v.mean(2, keepdim=True)
        return y.transpose(1, 2).flatten(2)

    def eager() -> Tensor:
        q, k, v = packed.flatten(1, 2).permute(2, 0, 3, 1, 4)
        image = v[:, :, case.before :].transpose(2, 3).reshape(1, channels, case.height, case.width)
        local = conv2d(image, filters.reshape(channels, 1, 3, 3), padding=1, groups=channels)
        local = local.view(batch, heads * dim, -1).transpose(1, 2)
        return (attended(q, k, v) + pad(local, (0, 0, case.before, 0))).view(case.shape)

    def eager_plain() -> Tensor:
        return attended(*packed.flatten(1, 2).permute(2, 0, 3, 1, 4)).view(case.shape)

    return {
        "ours": Side(ours, [packed, filters], grad),
        "ours plain": Side(ours_plain, [packed], grad),
        "eager": Side(eager, [packed, filters], grad),
        "eager plain": Side(eager_plain, [packed], grad),
    }
