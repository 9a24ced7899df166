"""Neighborhood attention on the Triton tile engine: launches, and when they can run.

Layouts: q, k [B, H, W, heads, D], v [B, H, W, heads, Dv], any strides with the last dimension contiguous; out, its
gradient and lse are contiguous. The relative table's gradient is a sum of dS over all pairs of one displacement: kept
in registers by the closed kernel (kernel = group), by :mod:`.bias` where neighborhoods overlap.
"""

import functools
import math
from math import gcd

import torch
import triton
from torch import Tensor

from .. import _attend as engine
from . import bias as bias_kernels
from . import maps, tuning
from .._launch import launch, unspecialised
from .geometry import Geometry

INTERPRETED = triton.knobs.runtime.interpret
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PROGRAMS = 1056  # persistent programs of a launch: 8 a multiprocessor of the largest cards; bounds every partial sum

FORWARD = unspecialised(engine.attend_forward)
BACKWARD_Q = unspecialised(engine.attend_backward_q)
BACKWARD_KV = unspecialised(engine.attend_backward_kv)
BACKWARD_CLOSED = unspecialised(engine.attend_backward_closed)
BIAS_BACKWARD = unspecialised(bias_kernels.bias_backward)
FOLD_BIAS = unspecialised(engine.fold_bias)


def unsupported(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if not q.is_cuda and not INTERPRETED:
        return f"q is on {q.device}, the fused kernels need a CUDA device"
    if q.dtype not in DTYPES:
        return f"dtype {q.dtype} is not one of float16, bfloat16, float32"
    if max(q.shape[-1], v.shape[-1]) > 256:
        return f"head dimension {max(q.shape[-1], v.shape[-1])} is over 256"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"compute capability {torch.cuda.get_device_capability(q.device)} is below (8, 0)"
    return None


def _padded(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def _precision(dtype: torch.dtype) -> str:
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def _constants(q: Tensor, v: Tensor, align: int) -> dict:
    d, dv = q.shape[-1], v.shape[-1]
    return dict(D=d, BD=_padded(d), DV=dv, BDV=_padded(dv), ALIGN=align, PRECISION=_precision(q.dtype),
                UPCAST=INTERPRETED and q.dtype == torch.bfloat16, FTZ=not INTERPRETED)  # fmt: skip


def _strides(*tensors: Tensor) -> tuple[list[int], int]:
    """(batch, row, column, head) strides of each tensor in units of ``align`` elements, and ``align``."""
    flat = [s for t in tensors for s in t.stride()[:4]]
    align = gcd(8, *flat)
    return [s // align for s in flat], align


def _rows_contiguous(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _launch(geometry: Geometry, height: int, width: int, tiles: tuning.Tiles) -> tuple[int, dict]:
    """How many tiles an image has, and the constexpr arguments that every pass shares."""
    (ky, kx), (dy, dx), (sy, sx) = geometry
    (th, tw), (ch, cw) = tiles.tile, tiles.chunk
    count = dy * math.ceil(math.ceil(height / dy) / th) * dx * math.ceil(math.ceil(width / dx) / tw)
    return count, dict(
        LOCATE=maps.locate, PLACE=maps.place, BIAS=maps.table_offset, P=(ky, kx, sy, sx), TH=th, TW=tw, CH=ch, CW=cw,
        num_warps=tiles.warps, num_stages=tiles.stages)  # fmt: skip


def _closed(geometry: Geometry, height: int, width: int, head_dim: int) -> tuple[int, int] | None:
    if head_dim > 64 or not geometry.is_closed(height, width):
        return None
    return tuning.closed_tiles(geometry.kernel)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32 [B, heads, H, W] in base 2)."""
    batch, height, width, heads, d = q.shape
    q, k, v = map(_rows_contiguous, (q, k, v))
    out = torch.empty(batch, height, width, heads, v.shape[-1], device=q.device, dtype=q.dtype)
    lse = torch.empty(batch, heads, height, width, device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    head_dim = _padded(max(d, v.shape[-1]))
    tiles = tuning.forward_tiles(geometry.kernel, head_dim, q.dtype == torch.float32)
    side = _closed(geometry, height, width, head_dim)
    if side:
        tiles = tiles._replace(tile=side, chunk=side, stages=1)
    count, shared = _launch(geometry, height, width, tiles)
    strides, align = _strides(q, k, v)
    launch(
        FORWARD, batch * count * heads, q, k, v, q if bias is None else bias, out, lse, *strides, height, width, heads, count, *geometry.dilation,
        scale * math.log2(math.e), SPAN=maps.key_span, MASK=maps.everything if side else maps.neighbors,
        ONE_COLUMN=tiles.tile[1] - 1 + geometry.kernel[1] <= tiles.chunk[1] or side is not None,
        HAS_BIAS=bias is not None, **shared, **_constants(q, v, align))  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, bias_grad: bool,
) -> Tensor | None:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous); returns the table's float32 gradient."""
    batch, height, width, heads, d = q.shape
    q, k, v, grad_out = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v), grad_out.contiguous()
    if out.numel() == 0:
        return torch.zeros(bias.shape, device=q.device) if bias_grad else None
    head_dim = _padded(max(d, v.shape[-1]))
    table = q if bias is None else bias
    scores = scale * math.log2(math.e)
    strides, align = _strides(q, k, v, dq, dk, dv)
    inputs, grads = strides[:12], strides[12:]
    constants = _constants(q, v, align) | dict(HAS_BIAS=bias is not None)
    side = _closed(geometry, height, width, head_dim)
    if side:
        tiles = tuning.Tiles(side, side, 4, 2)
        count, shared = _launch(geometry, height, width, tiles)
        del shared["CH"], shared["CW"]
        slices = max(1, min(batch * count, PROGRAMS // heads))
        cells = 64 * 64
        partial = torch.empty(slices * heads * cells if bias_grad else 0, device=q.device, dtype=torch.float32)
        launch(
            BACKWARD_CLOSED, slices * heads, q, k, v, table, out, grad_out, lse, dq, dk, dv, partial, *inputs, *grads, height, width, heads, count,
            batch * count, *geometry.dilation, scores, scale, MASK=maps.everything, BIAS_GRAD=bias_grad, **shared,
            **constants)  # fmt: skip
        return _fold(partial, bias, slices, cells, _closed_index(geometry.kernel, side, q.device)) if bias_grad else None

    tiles = tuning.backward_tiles(geometry.kernel, head_dim, q.dtype == torch.float32)
    count, shared = _launch(geometry, height, width, tiles)
    shared |= constants | dict(MASK=maps.neighbors)
    delta = torch.empty_like(lse)
    programs = batch * count * heads
    sizes = (height, width, heads, count, *geometry.dilation, scores, scale)
    one_column = tiles.tile[1] - 1 + geometry.kernel[1] <= tiles.chunk[1]
    launch(BACKWARD_Q, programs, q, k, v, table, out, grad_out, lse, delta, dq, *inputs, *grads[:4], *sizes, SPAN=maps.key_span,
                     ONE_COLUMN=one_column, **shared)  # fmt: skip
    launch(BACKWARD_KV, programs, q, k, v, table, grad_out, lse, delta, dk, dv, *inputs, *grads[4:], *sizes,
                      SPAN_T=maps.query_span, ONE_COLUMN=False, **shared)  # fmt: skip
    if not bias_grad:
        return None
    bq, bk = 16, 32
    chunks = math.ceil((bq + 2 * geometry.kernel[1] - 2) / bk)
    lines = (2 * geometry.kernel[0] - 1) * chunks
    slices = max(1, 4 * PROGRAMS // (heads * lines))
    cells = lines * bq * bk
    partial = torch.empty(slices * heads * cells, device=q.device, dtype=torch.float32)
    del constants["HAS_BIAS"]
    launch(
        BIAS_BACKWARD, slices * lines * heads, q, k, v, bias, grad_out, lse, delta, partial, *inputs, batch, height, width, heads, *geometry.dilation, slices,
        scores, P=(*geometry.kernel, *geometry.stride), BQ=bq, BK=bk, num_warps=1, num_stages=2, **constants)  # fmt: skip
    return _fold(partial, bias, slices, cells, _open_index(geometry.kernel, bq, bk, q.device))


def _fold(partial: Tensor, bias: Tensor, slices: int, cells: int, index: Tensor) -> Tensor:
    heads = bias.shape[0]
    total = partial.view(slices, heads, cells).sum(0)
    dbias = torch.empty(bias.shape, device=bias.device, dtype=torch.float32)
    count, depth = index.shape
    launch(FOLD_BIAS, triton.cdiv(count, 32) * heads, total, index, dbias, heads, cells, count, depth, BLOCK=32, DEPTH=32)
    return dbias


@functools.lru_cache(maxsize=64)
def _closed_index(kernel: tuple[int, int], side: tuple[int, int], device: torch.device) -> Tensor:
    """[displacements, pairs]: the cells of a [64, 64] block (query, key) that have one displacement; -1 pads."""
    ky, kx = kernel
    e = torch.arange(1 - ky, ky)[:, None, None, None]
    f = torch.arange(1 - kx, kx)[None, :, None, None]
    i = torch.arange(ky)[None, None, :, None]
    j = torch.arange(kx)[None, None, None, :]
    ok = (i + e >= 0) & (i + e < ky) & (j + f >= 0) & (j + f < kx)
    cell = (i * side[1] + j) * 64 + (i + e) * side[1] + j + f
    return torch.where(ok, cell, -1).reshape((2 * ky - 1) * (2 * kx - 1), -1).to(device, torch.int32)


@functools.lru_cache(maxsize=64)
def _open_index(kernel: tuple[int, int], bq: int, bk: int, device: torch.device) -> Tensor:
    """[displacements, BQ]: the cells of [rows, chunks, BQ, BK] where key column - query column is one displacement."""
    rows, columns = 2 * kernel[0] - 1, 2 * kernel[1] - 1
    chunks = math.ceil((bq + columns - 1) / bk)
    e = torch.arange(rows)[:, None, None]
    m = torch.arange(bq)[None, None, :]
    n = torch.arange(columns)[None, :, None] + m
    cell = ((e * chunks + n // bk) * bq + m) * bk + n % bk
    return cell.reshape(rows * columns, bq).to(device, torch.int32)
