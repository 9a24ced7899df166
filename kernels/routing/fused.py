"""Routed attention on the Triton tile engine: what is launched, and when it can run.

Layouts: q, k [B, H, W, heads, D], v [B, H, W, heads, Dv], any strides with the last dimension contiguous; out, its
gradient and lse are contiguous.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from .. import _attend as engine
from .. import _attend_queries as queries
from .. import _host as host
from .._arguments import ceil_div
from .._launch import launch, unspecialised
from .._register import lse_shape
from . import maps, tuning
from .geometry import Geometry

LONGEST = 1 << 21  # what is walked as one line, with room for its last chunk

FORWARD = unspecialised(engine.attend_forward)
BACKWARD_Q = unspecialised(queries.attend_backward_q)
BACKWARD_KV = unspecialised(engine.attend_backward_kv)
INVERT = unspecialised(maps.invert)


def unsupported(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, geometry: Geometry) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    tokens, listed = math.prod(geometry.size(*q.shape[1:3])), geometry.count * routes.shape[2]
    if max(tokens, 16 * listed) > LONGEST:
        return f"regions of {tokens} tokens with {listed} routes are over {LONGEST} tokens or {LONGEST // 16} routes"
    return host.unsupported(q, k, v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32 of :func:`lse_shape`)."""
    batch, height, width, heads, _ = q.shape
    out = torch.empty(v.shape, device=q.device, dtype=q.dtype)
    lse = torch.empty(lse_shape(q), device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    q, scale, _ = _positive(q, scale)
    strides, align = host.strides(q, k, v)
    size = geometry.size(height, width)
    plan = _planned(geometry, size, q, v, routes, align)
    tiles = plan.tiles(size, plan.forward)
    launch(FORWARD, batch * heads * tiles, plan.forward, q, k, v, routes.contiguous(), out, lse, *strides, height,
           width, heads, tiles, *size, scale, 0)  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, routes: Tensor, out: Tensor, lse: Tensor, geometry: Geometry,
    scale: float, dq: Tensor, dk: Tensor, dv: Tensor, routes_grad: bool,
) -> None:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous). ``routes`` have no gradient."""
    if out.numel() == 0:
        return
    batch, height, width, heads, _ = q.shape
    q, k, v, grad_out = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v), grad_out.contiguous()
    q, scale, sign = _positive(q, scale)
    routes = routes.contiguous()
    strides, align = host.strides(q, k, v, dq, dk, dv)
    size = geometry.size(height, width)
    plan = _planned(geometry, size, q, v, routes, align)
    delta = torch.empty(lse.shape[:4], device=q.device, dtype=torch.float32)
    tiles = plan.tiles(size, plan.queries)
    launch(BACKWARD_Q, batch * heads * tiles, plan.queries, q, k, v, routes, out, grad_out, lse, delta, dq,
           *strides[:16], height, width, heads, tiles, *size, scale, 0)  # fmt: skip
    lists = torch.empty(batch, geometry.count * (2 + routes.shape[2]), device=q.device, dtype=torch.int32)
    launch(INVERT, batch * geometry.count, plan.invert, routes, lists)
    tiles = plan.tiles(size, plan.keys)
    launch(BACKWARD_KV, batch * heads * tiles, plan.keys, q, k, v, lists, grad_out, lse, delta, dk, dv, *strides[:12],
           *strides[16:], height, width, heads, tiles, *size, scale, 0)  # fmt: skip
    if sign != 1:
        dq.mul_(sign)


class _Plan:
    """The launches' constants for one partition and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, geometry: Geometry, whole: bool, line: int, topk: int, routes_dtype: torch.dtype, d: int,
                 dv: int, dtype: torch.dtype, align: int, tf32: bool) -> None:  # fmt: skip
        wide = dtype == torch.float32
        head_dim = host.padded(max(d, dv))
        self.geometry = geometry
        shared = host.constants(d, dv, dtype, False, align, tf32) | dict(
            P=(*geometry.regions, topk, int(line == tuning.SMALLEST)), LOCATE=maps.token_tile, PLACE=maps.token_place,
            OWN=maps.token_place, MASK=None, BIAS=None, TH=1, CH=1)  # fmt: skip
        if not whole:  # where regions are cut, places of listed tokens have to be looked at once more for the mask
            shared |= dict(QUERY_AT=maps.inside, KEY_AT=maps.inside)

        def open_pass(tiles: tuning.Tiles, **more: object) -> dict:
            return shared | more | dict(TW=tiles.tile, CW=tiles.chunk, num_warps=tiles.warps, num_stages=tiles.stages)

        of_queries = dict(SPAN=maps.listed_span, KEY=maps.listed_place, LIST=maps.routes_of)
        self.forward = open_pass(tuning.forward_tiles(line, head_dim, wide), **of_queries)
        self.queries = open_pass(tuning.query_tiles(line, head_dim, wide), EXACT_DELTA=wide and not tf32, **of_queries)
        of_keys = dict(PLACE=maps.listed_place, OWN=maps.listed_place, KEY=maps.token_place, SPAN_T=maps.listed_span,
                       LIST=maps.readers_of)  # fmt: skip
        self.keys = open_pass(tuning.key_tiles(line, head_dim, wide), **of_keys)
        self.invert = dict(P=shared["P"], BLOCK=min(1024, triton.next_power_of_2(geometry.count * topk)),
                           num_warps=4)  # fmt: skip

    def tiles(self, size: tuple[int, int], constants: dict) -> int:
        """Tiles of all regions of an image, ``size`` the rows and columns of one."""
        return self.geometry.count * ceil_div(math.prod(size), constants["TW"])


_plan = functools.lru_cache(maxsize=4096)(_Plan)


def _planned(geometry: Geometry, size: tuple[int, int], q: Tensor, v: Tensor, routes: Tensor, align: int) -> _Plan:
    # beyond which of three tiles holds a region, and whether the map cuts any, a new map compiles nothing
    return _plan(geometry, geometry.is_whole(*q.shape[1:3]), tuning.line(math.prod(size)), routes.shape[2],
                 routes.dtype, q.shape[-1], v.shape[-1], q.dtype, align, host.tf32())  # fmt: skip


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """(sign * q, a positive scale, sign): of the same logits, whose maximum the kernels take before they scale."""
    if scale > 0:
        return q, scale, 1
    sign = -1 if scale < 0 else 0
    return q * sign, -scale if scale < 0 else 1.0, sign
