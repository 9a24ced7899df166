"""Window attention on the Triton tile engine: what is launched, and when it can run.

Layouts: k [B, H, W, heads, D], v [B, H, W, heads, Dv], q like k or [B, Y, X, heads, D] shared by all windows, any
strides with the last dimension contiguous; out, its gradient and lse are contiguous. Windows of at most 64 positions
run on the closed kernels, which also sum up the bias's gradient; larger ones on the open kernels and :mod:`.bias`.
"""

import functools
import math

import torch
from torch import Tensor

from .. import _attend as engine
from .. import _attend_closed as closed
from .. import _attend_queries as queries
from .. import _host as host
from .._arguments import ceil_div
from .._fold import fold_bias
from .._launch import launch, unspecialised
from .._register import lse_shape
from . import bias as wide_bias
from . import maps, reference, tuning
from .geometry import Geometry

FORWARD = unspecialised(engine.attend_forward)
BACKWARD_Q = unspecialised(queries.attend_backward_q)
BACKWARD_KV = unspecialised(engine.attend_backward_kv)
CLOSED_FORWARD = unspecialised(closed.attend_closed_forward)
CLOSED_BACKWARD = unspecialised(closed.attend_closed_backward)
BIAS_BACKWARD = unspecialised(wide_bias.bias_backward)
FOLD_BIAS = unspecialised(fold_bias)

PAIRS, TABLE, HEADS_LAST = "pairs", "table", "table, heads last"  # how a bias lies in memory
_OFFSETS = {
    PAIRS: (maps.pair_offset, maps.cut_pair_offset),
    TABLE: (maps.table_offset, maps.cut_table_offset),
    HEADS_LAST: (maps.heads_last_offset, maps.cut_heads_last_offset),
}


def unsupported(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if bias is not None and bias.numel() >= host.FAR:
        return f"the bias has {bias.numel()} numbers, and the kernels count less than {host.FAR}"
    return host.unsupported(q, k, v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32 of :func:`lse_shape`)."""
    batch, height, width, heads, _ = k.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    out = torch.empty(v.shape, device=q.device, dtype=q.dtype)
    lse = torch.empty(lse_shape(k), device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    bias = _bias(q, bias, geometry, scale)
    strides, align = host.strides(q, k, v)
    plan = _planned(geometry, q, k, v, bias, align, host.twins(strides))
    tensors = (q, k, v, q if bias is None else bias, out, lse)
    table = 1 if bias is None else bias.numel()
    if plan.closed:
        tiles = geometry.packed_windows(height, width)
        slices = min(batch * tiles, host.programs(q.device, heads))
        launch(CLOSED_FORWARD, slices * heads, plan.forward, *tensors, *strides, height, width, heads, tiles,
               batch * tiles, *geometry.shift, scale, table)  # fmt: skip
    else:
        tiles = geometry.windows(height, width) * plan.tiles
        launch(FORWARD, batch * heads * tiles, plan.forward, *tensors, *strides, height, width, heads, tiles,
               *geometry.shift, scale, table)  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, bias_grad: bool,
) -> Tensor | None:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous); returns the bias's float32 gradient."""
    if out.numel() == 0:
        dq.zero_()
        return torch.zeros(bias.shape, device=q.device, dtype=torch.float32) if bias_grad else None
    if q.shape == k.shape:
        return _backward(grad_out, q, k, v, bias, out, lse, geometry, scale, dq, dk, dv, bias_grad)
    # Every window has its share in the gradient of a shared query: written to a map like any other, then added up.
    shares = torch.empty(k.shape, device=q.device, dtype=torch.float32)
    dbias = _backward(grad_out, q, k, v, bias, out, lse, geometry, scale, shares, dk, dv, bias_grad)
    dq.copy_(reference.sum_windows(shares, geometry))
    return dbias


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, bias_grad: bool,
) -> Tensor | None:  # fmt: skip
    batch, height, width, heads, _ = k.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    grad_out = grad_out.contiguous()
    bias = _bias(q, bias, geometry, scale)
    strides, align = host.strides(q, k, v, dq, dk, dv)
    plan = _planned(geometry, q, k, v, bias, align, host.twins(strides))
    table, entries = (q, 1) if bias is None else (bias, bias.numel())
    tensors = (q, k, v, table)
    packed = geometry.packed_windows(height, width)
    numbers = (*geometry.shift, scale, entries)
    if plan.closed:
        slices = min(batch * packed, host.programs(q.device, heads))
        partial = torch.empty((slices, heads, plan.size, plan.size) if bias_grad else 0, device=q.device,
                              dtype=torch.float32)
        launch(CLOSED_BACKWARD, slices * heads, plan.closed_backward[bias_grad], *tensors, grad_out, lse, dq, dk, dv,
               partial, *strides, height, width, heads, packed, batch * packed, *numbers)  # fmt: skip
        return summed(partial, bias, plan.fold) if bias_grad else None

    delta = torch.empty(lse.shape[:4], device=q.device, dtype=torch.float32)
    windows = geometry.windows(height, width)
    tiles = windows * plan.query_tiles
    launch(BACKWARD_Q, batch * heads * tiles, plan.queries, *tensors, out, grad_out, lse, delta, dq, *strides[:16],
           height, width, heads, tiles, *numbers)  # fmt: skip
    tiles = windows * plan.key_tiles
    launch(BACKWARD_KV, batch * heads * tiles, plan.keys, *tensors, grad_out, lse, delta, dk, dv, *strides[:12],
           *strides[16:], height, width, heads, tiles, *numbers)  # fmt: skip
    if not bias_grad:
        return None
    slices = min(batch * packed, max(1, host.programs(q.device, heads) // plan.bias_blocks))
    partial = torch.empty(slices, heads, plan.size, plan.size, device=q.device, dtype=torch.float32)
    launch(BIAS_BACKWARD, slices * plan.bias_blocks * heads, plan.bias, *tensors, grad_out, lse, delta, partial,
           *strides[:12], height, width, heads, packed, batch * packed, *geometry.shift, slices, scale,
           entries)  # fmt: skip
    return summed(partial, bias, plan.fold)


class _Plan:
    """The launches' constants for one window and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, window: tuple[int, int], grid: bool, whole: bool, own: bool, d: int, dv: int, dtype: torch.dtype,
                 bias: tuple[str, torch.dtype] | None, align: int, tf32: bool, twins: bool) -> None:  # fmt: skip
        layout = PAIRS if bias is None else bias[0]  # its dtype too tells plans apart: kernels are compiled for it
        wide = dtype == torch.float32
        head_dim = host.padded(max(d, dv))
        whole_bias, cut_bias = _OFFSETS[layout]
        shared = host.constants(d, dv, dtype, bias is not None, align, tf32) | dict(P=(*window, int(grid)))
        packed = dict(LOCATE=maps.packed_locate, PLACE=maps.packed_place, PART=maps.packed_part,
                      OWN=maps.own if own else maps.packed_place)  # fmt: skip
        closed_size, positions = tuning.closed_size(math.prod(window)), math.prod(window)
        self.closed = closed_size is not None and head_dim <= 64
        self.size = closed_size if self.closed else positions  # of a side of the partial sums of dS
        self.fold = table_fold(window, self.size) if layout != PAIRS else None
        if self.closed:
            shared |= packed | dict(ALIKE=whole, KINDS=maps.packed_kinds, KIND=maps.packed_kind, PICK=maps.packed_pick,
                                    BIAS=whole_bias, CLAMP=False, TH=1, TW=self.size, TWINS=twins)  # fmt: skip
            self.forward = shared | tuning.closed_forward(self.size, head_dim, wide)
            options = tuning.closed_backward(self.size, head_dim, wide, whole)
            self.closed_backward = [shared | options | dict(BIAS_GRAD=grad) for grad in (False, True)]
            return

        walk = dict(SPAN=maps.cut_span, TWINS=twins)

        def open_pass(tiles: tuning.Tiles, **more: object) -> tuple[int, dict]:
            return ceil_div(math.prod(window), tiles.tile), shared | more | dict(
                LOCATE=maps.cut_locate, PLACE=maps.cut_place,
                OWN=maps.cut_own if own else maps.cut_place, MASK=maps.in_line, BIAS=cut_bias,
                TH=1, TW=tiles.tile, CH=1, CW=tiles.chunk, num_warps=tiles.warps, num_stages=tiles.stages)  # fmt: skip

        self.tiles, self.forward = open_pass(tuning.forward_tiles(head_dim, wide), **walk)
        self.query_tiles, self.queries = open_pass(
            tuning.query_tiles(head_dim, wide), **walk, EXACT_DELTA=wide and not tf32)  # fmt: skip
        self.key_tiles, self.keys = open_pass(tuning.key_tiles(head_dim, wide), SPAN_T=maps.cut_span)
        tiles = tuning.bias_tiles(head_dim, wide)
        self.bias_blocks = ceil_div(math.prod(window), tiles.tile) * ceil_div(math.prod(window), tiles.chunk)
        self.bias = {name: value for name, value in shared.items() if name != "HAS_BIAS"} | packed | dict(
            BIAS=whole_bias, BM=tiles.tile, BN=tiles.chunk, num_warps=tiles.warps, num_stages=tiles.stages)  # fmt: skip


_plan = functools.lru_cache(maxsize=4096)(_Plan)


def _planned(geometry: Geometry, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, align: int,
             twins: bool) -> _Plan:  # fmt: skip
    # windows that are all alike run kernels of their own; beyond that, a new map compiles nothing
    return _plan(geometry.window, geometry.grid, geometry.is_whole(*k.shape[1:3]), q.shape != k.shape, k.shape[-1],
                 v.shape[-1], q.dtype, _layout(geometry, bias), align, host.tf32(), twins)  # fmt: skip


def _layout(geometry: Geometry, bias: Tensor | None) -> tuple[str, torch.dtype] | None:
    if bias is None:
        return None
    table = TABLE if bias.is_contiguous() else HEADS_LAST
    return table if geometry.is_table(bias.shape) else PAIRS, bias.dtype


def _bias(q: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> Tensor | None:
    """The bias as the kernels read it; zeros for a scale that is not positive, which they only take beside a bias.

    Read where it lies, in its own dtype: a copy would cost as much as the attention of a small map.
    """
    if bias is not None:
        if bias.dtype not in host.DTYPES:
            bias = bias.to(torch.float32)
        if geometry.is_table(bias.shape) and bias.movedim(0, -1).is_contiguous():
            return bias
        return bias.contiguous()
    if scale > 0:
        return None
    return torch.zeros(q.shape[3], *[geometry.positions] * 2, device=q.device, dtype=torch.float32)


def table_fold(window: tuple[int, int], size: int) -> dict:
    """Constants of :data:`FOLD_BIAS` for sums of dS of ``size x size`` pairs and a table of displacements."""
    depth = host.padded(math.prod(window))
    return dict(CELL=maps.table_cell, P=window, T=size, COUNT=math.prod(2 * n - 1 for n in window),
                BLOCK=max(1, min(32, 4096 // depth)), DEPTH=depth)  # fmt: skip


def summed(partial: Tensor, bias: Tensor, fold: dict | None) -> Tensor:
    """Programs' sums of dS [slices, heads, size, size] added up, and with ``fold`` along a table's displacements."""
    slices, heads, size, _ = partial.shape
    total = partial.sum(0) if slices > 1 else partial[0]
    if fold is None:
        return total[:, : bias.shape[1], : bias.shape[2]].contiguous()
    dbias = torch.empty(bias.shape, device=total.device, dtype=torch.float32)
    blocks = ceil_div(fold["COUNT"], fold["BLOCK"])
    launch(FOLD_BIAS, blocks * heads, fold, total, dbias, heads, size * size)
    return dbias
