"""Depthwise convolution in Triton: what is launched, and when it can run.

Layouts: x and its gradient [B, H, W, C], any strides with the channels contiguous; out and its gradient contiguous.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from .. import _host as host
from .._launch import launch, unspecialised
from . import passes, tuning

CONVOLVE, FILTERS = unspecialised(passes.convolve), unspecialised(passes.filter_gradients)
SIDES = (1, 3, 5, 7)


def unsupported(x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if weight.shape[-1] not in SIDES:
        return f"filters are {weight.shape[-1]} a side, not one of {', '.join(map(str, SIDES))}"
    return host.unsupported(x[..., :1], x[..., :1])  # any number of channels


def forward(
    x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, C] contiguous in x's dtype, an empty tensor: there is nothing else to keep)."""
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    _convolve(x, weight, bias, out, residual, flip=False)
    return out, torch.empty(0, device=x.device, dtype=torch.float32)


def backward(
    grad_out: Tensor, x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, kept: Tensor,
    residual: bool, dx: Tensor, _dk: Tensor, _dv: Tensor, weight_grad: bool, bias_grad: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Writes into dx (x's shape, channels contiguous); returns the float32 gradients of weight and bias."""
    grad_out = grad_out.contiguous()
    _convolve(grad_out, weight, None, dx, residual, flip=True)
    if not (weight_grad or bias_grad):
        return None, None
    batch, height, width, channels = x.shape
    side = weight.shape[-1]
    if x.numel() == 0:
        sums = torch.zeros(side * side + 1, channels, device=x.device, dtype=torch.float32)
    else:
        x = host.contiguous_rows(x)
        strides, align = _strides(x, grad_out)
        plan = _filters_plan(side, height, align, x.dtype)
        tiles = triton.cdiv(height, plan["TH"]), triton.cdiv(width, plan["TW"])
        blocks = triton.cdiv(channels, plan["BC"])
        slices = min(batch * tiles[0] * tiles[1], host.programs(x.device, blocks))
        partial = torch.empty(slices, side * side + 1, channels, device=x.device, dtype=torch.float32)
        launch(FILTERS, slices * blocks, plan, x, grad_out, partial, *strides, batch, height, width, channels // align,
               *tiles, blocks, slices)  # fmt: skip
        sums = partial.sum(0)
    found = sums[:-1].t().contiguous().view(weight.shape) if weight_grad else None
    return found, sums[-1] if bias_grad else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, residual: bool, flip: bool) -> None:
    batch, height, width, channels = x.shape
    if x.numel() == 0:
        return
    x = host.contiguous_rows(x)
    side = weight.shape[-1]
    taps = weight.reshape(channels, side * side).t().contiguous()
    strides, align = _strides(x, out)
    plan = _plan(side, height, width, channels, align, flip, bias is not None, residual, x.dtype, weight.dtype,
                 None if bias is None else bias.dtype)  # fmt: skip
    tiles = triton.cdiv(height, plan["TH"]), triton.cdiv(width, plan["TW"])
    blocks = triton.cdiv(channels, plan["BC"])
    launch(CONVOLVE, batch * tiles[0] * tiles[1] * blocks, plan, x, taps, taps if bias is None else bias, out,
           *strides, height, width, channels // align, *tiles, blocks)  # fmt: skip


def _strides(x: Tensor, y: Tensor) -> tuple[list[int], int]:
    """As :func:`.._host.strides`, of which the number of channels is a multiple too."""
    strides, align = host.strides(x, y)
    common = math.gcd(align, x.shape[3])
    return [s * (align // common) for s in strides], common


@functools.lru_cache(maxsize=4096)
def _plan(
    side: int, height: int, width: int, channels: int, align: int, flip: bool, bias: bool, residual: bool,
    dtype: torch.dtype, *dtypes: object,
) -> dict:  # fmt: skip
    """The launch's constants; a dict of its own for each combination of dtypes, which launches tell apart by it."""
    constants = dict(K=side, ALIGN=align, FLIP=flip, HAS_BIAS=bias, RESIDUAL=residual)
    return tuning.convolve(side, height, width, channels, dtype) | constants


@functools.lru_cache(maxsize=4096)
def _filters_plan(side: int, height: int, align: int, dtype: torch.dtype) -> dict:
    return tuning.filters(height) | dict(K=side, ALIGN=align)
