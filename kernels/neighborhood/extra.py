"""Neighborhood attention whose queries may also attend to extra tokens, all of them to all, in the same softmax.

Layouts: extra k [B, T, heads, D], extra v [B, T, heads, Dv]. The kernels of :mod:`.fused` know a query's neighborhood
alone. The extra tokens are a second attention on the same engine, whose index maps are below: the space of queries is
the map as one line, that of keys the line of tokens. Forward, each part has its output and its sum of exponentials,
from which those of the whole follow exactly. Backward, dS = P (dP - delta) asks of the whole only the sum and delta, so
both parts run by themselves once more, with those of the whole, and dq is the sum of theirs. A program that owns extra
keys walks a share of the map's queries; shares are added up in a fixed order.

The op runs this module, which hands calls without extra tokens on as they are.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _host as host
from .._blocks import exponentials, load_lse, load_rows, store_lse, store_rows
from .._launch import launch, unspecialised
from .._scores import score_unit
from . import fused
from .geometry import Geometry

FORWARD, BACKWARD_Q, BACKWARD_KV = fused.FORWARD, fused.BACKWARD_Q, fused.BACKWARD_KV

# The engine's index maps (``kernels/_attend.py`` says what each one answers). The run-time numbers a_y and a_x are how
# many tokens there are and into how many shares the queries are cut; ``g`` is (width, the share, the first and one past
# the last of what the tile walks).


@triton.jit
def query_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, t * TW, 1, height * width, (width, t * 0, t * 0, a_y)


@triton.jit
def token_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    tiles = tl.cdiv(a_y, TW)
    share = tl.cdiv(height * width, a_x)
    lo = t // tiles * share
    hi = tl.maximum(tl.minimum(lo + share, height * width), lo)
    return 0, t % tiles * TW, 1, a_y, (width, t // tiles, lo, hi)


@triton.jit
def span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, 1, g[2], g[3]


@triton.jit
def query_place(i, j, g, P: tl.constexpr):
    return j // g[0], j % g[0]


@triton.jit
def token_place(i, j, g, P: tl.constexpr):
    # a share of the queries has a row of its own among the gradients; tokens are the same in every row
    return g[1], j


@triton.jit
def no_bias(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    return q_j + k_j  # the engine clamps it into a table of one zero


@triton.jit
def merge(p_out, p_lse, p_more, p_more_lse, positions, heads, scale, BM: tl.constexpr, DV: tl.constexpr,
          BDV: tl.constexpr, HAS_BIAS: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Writes into out and lse what they are over their own keys and those of ``more`` together."""
    head = tl.program_id(0) % heads
    rest = tl.program_id(0) // heads
    tiles = tl.cdiv(positions, BM)
    b = (rest // tiles).to(tl.int64)
    o_m = rest % tiles * BM + tl.arange(0, BM)
    ok = o_m < positions
    o_row = (b * heads + head) * positions + o_m
    b_lse, b_norm = load_lse(p_lse, o_row, ok, SPLIT)
    b_more, b_more_norm = load_lse(p_more_lse, o_row, ok, SPLIT)
    b_lse = tl.where(ok, b_lse, 0.0)
    b_more = tl.where(ok, b_more, 0.0)
    b_m = tl.maximum(b_lse, b_more)
    unit = score_unit(scale, HAS_BIAS) if SPLIT else 1.0
    b_w = exponentials(b_lse, unit, b_m, SPLIT, FTZ)
    b_w_more = exponentials(b_more, unit, b_m, SPLIT, FTZ)
    if SPLIT:
        b_w /= tl.where(ok, b_norm, 1.0)
        b_w_more /= tl.where(ok, b_more_norm, 1.0)
    b_l = b_w + b_w_more
    o_image = (b * positions * heads + head) * DV
    UNIT: tl.constexpr = DV & -DV
    o_x = heads * (DV // UNIT)
    b_o = load_rows(p_out + o_image, 0, o_x, UNIT, o_m, o_m, ok, DV, BDV, False).to(tl.float32)  # [BM, BDV]
    b_o_more = load_rows(p_more + o_image, 0, o_x, UNIT, o_m, o_m, ok, DV, BDV, False).to(tl.float32)
    b_o = b_o * (b_w / b_l)[:, None] + b_o_more * (b_w_more / b_l)[:, None]
    tl.debug_barrier()  # several threads read each lse: none may replace one before all have
    store_lse(p_lse, o_row, ok, b_m, b_l, SPLIT, FTZ)
    store_rows(p_out + o_image, 0, o_x, UNIT, o_m, o_m, ok, b_o, DV, BDV)


MERGE = unspecialised(merge)


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
    geometry: Geometry,
) -> str | None:  # fmt: skip
    """Why the fused kernels cannot take these tensors, or None."""
    return host.unsupported(q, k, *(x for x in (extra_k, extra_v) if x is not None), v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
    geometry: Geometry, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32), over all keys."""
    if extra_k is None:
        return fused.forward(q, k, v, bias, geometry, scale)
    out, lse = fused.forward(q, k, v, bias, geometry, scale, part=True)
    if out.numel() == 0:
        return out, lse
    batch, height, width, heads, _ = q.shape
    q, extra_k, extra_v = _lines(q, extra_k, extra_v)
    more, more_lse = torch.empty_like(out), torch.empty_like(lse)
    zero = _zero(q, bias, scale)
    strides, align = host.strides(q, extra_k, extra_v)
    plan = _plan(q.shape[-1], out.shape[-1], q.dtype, zero is not None, align, host.tf32(), extra_k.shape[2] <= 16)
    launch(FORWARD, batch * heads * triton.cdiv(height * width, plan.tile), plan.forward, q, extra_k, extra_v,
           q if zero is None else zero, more, more_lse, *strides, height, width, heads,
           triton.cdiv(height * width, plan.tile), extra_k.shape[2], 1, scale, 1)  # fmt: skip
    launch(MERGE, batch * heads * triton.cdiv(height * width, plan.merge["BM"]), plan.merge, out, lse, more, more_lse,
           height * width, heads, scale)  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None,
    extra_v: Tensor | None, out: Tensor, lse: Tensor, geometry: Geometry, scale: float, dq: Tensor, dk: Tensor,
    dv: Tensor, bias_grad: bool, k_grad: bool, v_grad: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Writes into dq, dk, dv; returns the float32 gradients of the table and of the extra tokens, where wanted."""
    grad_out = grad_out.contiguous()
    part = extra_k is not None
    dbias = fused.backward(grad_out, q, k, v, bias, out, lse, geometry, scale, dq, dk, dv, bias_grad, part=part)
    if not part:
        return dbias, None, None
    if out.numel() == 0:
        grads = (torch.zeros(x.shape, device=q.device, dtype=torch.float32) if want else None
                 for x, want in ((extra_k, k_grad), (extra_v, v_grad)))  # fmt: skip
        return dbias, *grads
    batch, height, width, heads, d = q.shape
    tokens, positions, dim_v = extra_k.shape[1], height * width, out.shape[-1]
    q, extra_k, extra_v = _lines(q, extra_k, extra_v)
    more_dq = torch.empty(q.shape, device=q.device, dtype=torch.float32)
    delta = torch.empty(lse.shape[:4], device=q.device, dtype=torch.float32)
    zero = _zero(q, bias, scale)
    table = q if zero is None else zero
    kind = q.dtype, zero is not None
    strides, align = host.strides(q, extra_k, extra_v, more_dq)
    plan = _plan(d, dim_v, *kind, align, host.tf32(), tokens <= 16)
    tiles = triton.cdiv(positions, plan.tile)
    launch(BACKWARD_Q, batch * heads * tiles, plan.queries, q, extra_k, extra_v, table, out, grad_out, lse, delta,
           more_dq, *strides, height, width, heads, tiles, tokens, 1, scale, 1)  # fmt: skip
    dq.add_(more_dq)
    if not (k_grad or v_grad):
        return dbias, None, None
    tiles = triton.cdiv(tokens, plan.key_tile)
    shares = max(1, min(triton.cdiv(positions, plan.keys["CW"]), host.programs(q.device, heads) // (batch * tiles)))
    extra_k, extra_v = (x.expand(batch, shares, -1, -1, -1) for x in (extra_k, extra_v))
    more_dk, more_dv = (torch.empty(batch, shares, tokens, heads, n, device=q.device, dtype=torch.float32)
                        for n in (d, dim_v))  # fmt: skip
    strides, align = host.strides(q, extra_k, extra_v, more_dk, more_dv)
    plan = _plan(d, dim_v, *kind, align, host.tf32(), tokens <= 16)
    launch(BACKWARD_KV, batch * heads * tiles * shares, plan.keys, q, extra_k, extra_v, table, grad_out, lse, delta,
           more_dk, more_dv, *strides, height, width, heads, tiles * shares, tokens, shares, scale, 1)  # fmt: skip
    return dbias, more_dk.sum(1) if k_grad else None, more_dv.sum(1) if v_grad else None


def _lines(q: Tensor, extra_k: Tensor, extra_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the engine reads them: q a map, the tokens maps [B, 1, T, heads, D] of one row."""
    return host.contiguous_rows(q), *(host.contiguous_rows(x).unsqueeze(1) for x in (extra_k, extra_v))


def _zero(q: Tensor, bias: Tensor | None, scale: float) -> Tensor | None:
    """A bias of nothing where the neighborhood has one, so that both parts count their scores in the same unit."""
    return None if bias is None and scale > 0 else torch.zeros(1, device=q.device, dtype=torch.float32)


class _Plan:
    """The launches' constants for one pair of head dimensions and dtype."""

    def __init__(self, d: int, dv: int, dtype: torch.dtype, bias: bool, align: int, tf32: bool, few: bool) -> None:
        large_head = host.padded(max(d, dv)) > 64
        large = dtype == torch.float32 or large_head
        self.tile, chunk = (32, 16) if large else (64, 16 if few else 32)
        self.key_tile, key_chunk = (16, 32) if large else (16 if few else 32, 64)
        shared = host.constants(d, dv, dtype, bias, align, tf32) | dict(
            PLACE=query_place, OWN=query_place, KEY=token_place, MASK=None, BIAS=no_bias, P=(), TH=1, CH=1,
            num_warps=8 if dtype == torch.float32 and large_head else 4)  # fmt: skip
        walk = dict(LOCATE=query_tile, SPAN=span, TW=self.tile, CW=chunk, num_stages=1 if large else 2)
        self.forward = shared | walk
        self.queries = shared | walk | dict(EXACT_DELTA=False)
        self.keys = shared | dict(LOCATE=token_tile, SPAN_T=span, TW=self.key_tile, CW=key_chunk, num_stages=1)
        self.merge = {name: shared[name] for name in ("DV", "BDV", "HAS_BIAS", "FTZ", "SPLIT")} | dict(
            BM=16 if large_head else 64, num_warps=4)  # fmt: skip


_plan = functools.lru_cache(maxsize=256)(_Plan)
