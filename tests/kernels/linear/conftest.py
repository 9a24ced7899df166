"""Injective linear attention written once more, as its official code has it, and drawn tensors."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad


def linear_in_one_dtype(q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None = None,
                        grid: tuple[int, int] | None = None, scale: float | None = None) -> Tensor:
    """Injective linear attention as its official code has it, in q's dtype throughout: what eager PyTorch gives.

    `taps` [B, heads, 3, 3, Dv]: the residual's filters.
    """
    batch, height, width, heads, d = q.shape
    n, size, scale = height * width, v.shape, d**-0.5 if scale is None else scale
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))                  # [B, heads, N, D]
    kv = (k.transpose(2, 3) * abs(scale / n) ** 0.5) @ (v * abs(scale / n) ** 0.5) * (1 if scale >= 0 else -1)
    out = q @ kv + (1 - q @ k.mean(2, True).transpose(2, 3) * scale) * v.mean(2, True)
    if taps is not None:
        rows, columns = grid or (height, width)
        channels = batch * heads * size[-1]
        image = v[:, :, n - rows * columns:].transpose(2, 3).reshape(1, channels, rows, columns)
        weight = taps.permute(0, 1, 4, 2, 3).reshape(channels, 1, 3, 3)
        local = conv2d(image, weight.to(v.dtype), padding=1, groups=channels)
        local = local.view(batch, heads, size[-1], -1).transpose(2, 3)
        out = out + pad(local, (0, 0, n - rows * columns, 0))
    return out.transpose(1, 2).reshape(size)


@pytest.fixture
def linear_eager() -> Callable:
    return linear_in_one_dtype


@pytest.fixture
def linear_drawn(drawn: Callable) -> Callable:
    """draw(batch, height, width, heads, d, dv, device, taps): float64 q, k, v and filters, as `drawn` gives them."""

    def draw_linear(batch: int, height: int, width: int, heads: int, d: int, dv: int, device: str,
                    taps: bool = True) -> dict[str, Tensor]:
        tensors = drawn(batch, height, width, heads, d, dv, None, device)
        if taps:
            tensors["taps"] = torch.randn(batch, heads, 3, 3, dv).bfloat16().to(tensors["q"])
        return tensors

    return draw_linear
