"""Varied window attention in Triton: what is launched, and when it can run.

Layouts: q, k [B, H, W, heads, D], v [B, H, W, heads, Dv], any strides with the last dimension contiguous; out, its
gradient and lse are contiguous. The backward pass holds the gradients of the sampled keys and values, as large as k and
v where windows divide the map.
"""

import functools
import math

import torch
from torch import Tensor

from .. import _host as host
from .._launch import launch, unspecialised
from .._register import lse_shape
from ..window import maps
from ..window.fused import summed, table_fold
from ..window.geometry import Geometry
from ..window.tuning import closed_size
from . import passes, tuning

WIDEST = {torch.float32: 64}  # head dimensions that every card has the shared memory for; 128 in other dtypes

FORWARD = unspecialised(passes.varied_forward)
BACKWARD = unspecialised(passes.varied_backward)
COLLECT = unspecialised(passes.varied_collect)


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry
) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if closed_size(geometry.positions) is None:
        return f"a window of {geometry.window} has {geometry.positions} positions, over 64"
    widest = WIDEST.get(q.dtype, 128)
    if max(q.shape[-1], v.shape[-1]) > widest:
        return f"head dimension {max(q.shape[-1], v.shape[-1])} is over {widest}, the most in {q.dtype}"
    return host.unsupported(q, k, v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32 of :func:`lse_shape`)."""
    batch, height, width, heads, _ = k.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    out = torch.empty(v.shape, device=q.device, dtype=q.dtype)
    lse = torch.empty(lse_shape(q), device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    sampling, bias = _float(sampling), _float(bias)
    strides, align = host.strides(q, k, v)
    plan = _planned(geometry, q, v, bias, align)
    rows, columns = geometry.map_windows(height, width)
    windows = batch * rows * columns
    slices = min(windows, host.programs(q.device, heads))
    launch(FORWARD, slices * heads, plan.forward, q, k, v, sampling, q if bias is None else bias, out, lse, *strides,
           height, width, heads, columns, rows * columns, windows, scale, _count(bias))  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, sampling_grad: bool, bias_grad: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous).

    Returns the float32 gradients of sampling and bias, where they are wanted.
    """
    if out.numel() == 0:
        wanted = (sampling, sampling_grad), (bias, bias_grad)
        return tuple(torch.zeros(x.shape, device=q.device, dtype=torch.float32) if want else None for x, want in wanted)
    batch, height, width, heads, dim = k.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    grad_out, sampling, bias = grad_out.contiguous(), _float(sampling), _float(bias)
    strides, align = host.strides(q, k, v, dq, dk, dv)
    plan = _planned(geometry, q, v, bias, align)
    rows, columns = geometry.map_windows(height, width)
    tiles = rows * columns
    windows = batch * tiles
    slices = min(windows, host.programs(q.device, heads))
    keys, values = (torch.empty(windows, heads, geometry.positions, x.shape[-1], device=q.device, dtype=q.dtype)
                    for x in (k, v))  # fmt: skip
    dsampling = torch.empty(sampling.shape if sampling_grad else 0, device=q.device, dtype=torch.float32)
    partial = torch.empty((slices, heads, plan.size, plan.size) if bias_grad else 0, device=q.device,
                          dtype=torch.float32)  # fmt: skip
    launch(BACKWARD, slices * heads, plan.backward[sampling_grad, bias_grad], q, k, v, sampling,
           q if bias is None else bias, grad_out, lse, dq, keys, values, dsampling, partial, *strides[:16], height,
           width, heads, columns, tiles, windows, scale, _count(bias))  # fmt: skip
    launch(COLLECT, windows * heads, plan.collect, sampling, keys, values, dk, dv, *strides[16:], height, width, heads,
           columns, tiles)  # fmt: skip
    return dsampling if sampling_grad else None, summed(partial, bias, plan.fold) if bias_grad else None


def _float(x: Tensor | None) -> Tensor | None:
    """A bias or places as the kernels read them."""
    return None if x is None else x.to(torch.float32).contiguous()


def _count(bias: Tensor | None) -> int:
    return 1 if bias is None else bias.numel()


class _Plan:
    """The launches' constants for one window and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, window: tuple[int, int], d: int, dv: int, dtype: torch.dtype, bias: str | None, align: int,
                 tf32: bool) -> None:  # fmt: skip
        self.size = closed_size(math.prod(window))
        options = self.size, host.padded(max(d, dv)), dtype == torch.float32
        constants = host.constants(d, dv, dtype, bias is not None, align, tf32) | dict(P=window, T=self.size)
        offset = maps.table_offset if bias == "table" else maps.pair_offset
        self.fold = table_fold(window, self.size) if bias == "table" else None
        self.forward = constants | tuning.forward_options(*options) | dict(BIAS=offset)
        own = constants | tuning.backward_options(*options) | dict(BIAS=offset)
        self.backward = {(places, table): own | dict(PLACE_GRAD=places, BIAS_GRAD=table)
                         for places in (False, True) for table in (False, True)}  # fmt: skip
        names = ("P", "T", "D", "BD", "DV", "BDV", "ALIGN", "PRECISION", "UPCAST")
        self.collect = {name: constants[name] for name in names} | tuning.collect_options(*options)
        self.collect["CHUNK"] = tuning.CHUNK


_plan = functools.lru_cache(maxsize=4096)(_Plan)


def _planned(geometry: Geometry, q: Tensor, v: Tensor, bias: Tensor | None, align: int) -> _Plan:
    kind = None if bias is None else "table" if geometry.is_table(bias.shape) else "pairs"
    return _plan(geometry.window, q.shape[-1], v.shape[-1], q.dtype, kind, align, host.tf32())
