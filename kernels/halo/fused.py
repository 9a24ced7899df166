"""Halo attention on the Triton tile engine: what is launched, and when it can run.

Layouts: q [B, Hq, Wq, heads, D], k [B, H, W, heads, D], v [B, H, W, heads, Dv], any strides with the last dimension
contiguous; out, its gradient and lse are contiguous. :mod:`.relative` says what the workspace holds: the tables and, in
the backward passes, what queries add to the logits.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _attend as engine
from .. import _attend_queries as queries
from .. import _host as host
from .._arguments import ceil_div
from .._launch import launch, unspecialised
from .._register import lse_shape
from . import maps, relative, tuning
from .geometry import Geometry

LONGEST = 64  # positions of a window along an axis

FORWARD = unspecialised(engine.attend_forward)
BACKWARD_Q = unspecialised(queries.attend_backward_q)
BACKWARD_KV = unspecialised(engine.attend_backward_kv)
TABLE_BACKWARD = unspecialised(relative.table_backward)


def unsupported(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Geometry) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if max(geometry.window) > LONGEST:
        return f"the window of block_size + 2 * halo_size = {geometry.window} positions is over {LONGEST} along an axis"
    return host.unsupported(q, k, v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, Hq, Wq, heads, Dv] contiguous in q's dtype, lse float32 of :func:`lse_shape`)."""
    batch, height, width, heads, _ = q.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    out = torch.empty(*q.shape[:4], v.shape[-1], device=q.device, dtype=q.dtype)
    lse = torch.empty(lse_shape(q), device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    strides, align = host.strides(q, k, v)
    plan = _plan(geometry, q.shape[-1], v.shape[-1], q.dtype, align, host.tf32())
    tables = plan.tables(rel_h, rel_w).to(q.dtype)
    tiles = math.prod(geometry.blocks(*k.shape[1:3])) * plan.tiles
    launch(FORWARD, batch * heads * tiles, plan.forward, q, k, v, tables, out, lse, *strides, height, width, heads,
           tiles, *k.shape[1:3], scale, tables.numel())  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, rel_h_grad: bool, rel_w_grad: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous); returns the tables' float32 gradients."""
    batch, height, width, heads, dim = q.shape
    wanted = rel_h_grad, rel_w_grad
    if out.numel() == 0:
        empty = (torch.zeros(t.shape, device=q.device, dtype=torch.float32) for t in (rel_h, rel_w))
        return tuple(x if want else None for x, want in zip(empty, wanted))
    q, k, v, grad_out = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v), grad_out.contiguous()
    strides, align = host.strides(q, k, v, dq, dk, dv)
    plan = _plan(geometry, dim, v.shape[-1], q.dtype, align, host.tf32())
    tables = plan.tables(rel_h, rel_w)
    first = ceil_div(tables.numel(), 16) * 16  # whole cache lines a query
    delta = torch.empty(lse.shape[:4], device=q.device, dtype=torch.float32)
    space = torch.empty(first + delta.numel() * plan.numbers, device=q.device, dtype=q.dtype)
    space[: tables.numel()].view(tables.shape).copy_(tables)
    sizes = (*k.shape[1:3], scale, first)
    tiles = math.prod(geometry.blocks(*k.shape[1:3])) * plan.query_tiles
    launch(BACKWARD_Q, batch * heads * tiles, plan.queries, q, k, v, space, out, grad_out, lse, delta, dq,
           *strides[:16], height, width, heads, tiles, *sizes)  # fmt: skip
    tiles = plan.key_tiles(*k.shape[1:3])
    launch(BACKWARD_KV, batch * heads * tiles, plan.keys, q, k, v, space, grad_out, lse, delta, dk, dv, *strides[:12],
           *strides[16:], height, width, heads, tiles, *sizes)  # fmt: skip
    if not any(wanted):
        return None, None
    slices = min(batch * heads * ceil_div(height * width, plan.run), host.programs(q.device, 2))
    partial = torch.empty(slices, 2, plan.displacements, dim, device=q.device, dtype=torch.float32)
    launch(TABLE_BACKWARD, slices, plan.table, q, space, partial, *strides[:4], height, width, heads, batch * heads,
           first, slices)  # fmt: skip
    total = partial.sum(0)
    found = (pad(x[:n], (0, 0, skip, 0)) for x, n, skip in zip(total, plan.occurring, plan.skipped, strict=True))
    return tuple(x if want else None for x, want in zip(found, wanted, strict=True))


class _Plan:
    """The launches' constants for one geometry and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, geometry: Geometry, d: int, dv: int, dtype: torch.dtype, align: int, tf32: bool) -> None:
        wide = dtype == torch.float32
        head_dim = host.padded(max(d, dv))
        self.geometry = geometry
        self.skipped = [w - n for w, n in zip(geometry.window, geometry.queries)]  # displacements that cannot occur
        self.occurring = [w + n - 1 for w, n in zip(geometry.window, geometry.queries)]
        places, self.displacements = host.padded(max(geometry.window)), host.padded(max(self.occurring))
        self.numbers = 2 * places + 2 * self.displacements
        shared = host.constants(d, dv, dtype, True, align, tf32) | dict(
            P=(*geometry.block, *geometry.halo, *geometry.stride, places, self.displacements, d),
            MASK=None, BIAS=None, QUERY_AT=maps.query_at, KEY_AT=maps.key_at)  # fmt: skip
        queries = math.prod(geometry.queries)

        def open_pass(tiles: tuning.Tiles, **more: object) -> dict:
            return shared | more | dict(TH=tiles.tile[0], TW=tiles.tile[1], CH=tiles.chunk[0], CW=tiles.chunk[1],
                                        num_warps=tiles.warps, num_stages=tiles.stages)  # fmt: skip

        of_queries = dict(LOCATE=maps.query_tile, PLACE=maps.query_place, OWN=maps.query_place, KEY=maps.window_place,
                          SPAN=maps.window_span, FEATURE=relative.window_feature)  # fmt: skip
        tiles = tuning.forward_tiles(queries, head_dim, wide)
        self.tiles = ceil_div(queries, tiles.tile[1])
        self.forward = open_pass(tiles, RELATE=relative.relate, **of_queries)
        tiles = tuning.query_tiles(queries, head_dim, wide)
        self.query_tiles = ceil_div(queries, tiles.tile[1])
        self.queries = open_pass(tiles, RELATE=relative.relate_and_keep, UNRELATE=relative.unrelate,
                                 EXACT_DELTA=wide and not tf32, **of_queries)  # fmt: skip
        tiles = tuning.key_tiles(head_dim, wide)
        self.key_tile = tiles.tile
        self.keys = open_pass(tiles, LOCATE=maps.key_tile, PLACE=maps.reader_place, OWN=maps.reader_place,
                              KEY=maps.key_place, SPAN_T=maps.reader_span, RELATE=relative.kept,
                              FEATURE=relative.reader_feature)  # fmt: skip
        self.run = 64 if head_dim <= 64 and not wide else 32
        names = ("P", "D", "BD", "ALIGN", "PRECISION", "UPCAST")
        self.table = {name: shared[name] for name in names} | dict(
            BN=self.run, num_warps=4 if head_dim <= 128 else 8, num_stages=1 if wide else 2)  # fmt: skip

    def tables(self, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        """The displacements of both tables that occur, one after the other."""
        return torch.cat((rel_h[self.skipped[0] :], rel_w[self.skipped[1] :]))

    def key_tiles(self, height: int, width: int) -> int:
        """Tiles of keys on a map, as ``maps.key_tile`` lays them."""
        count = 1
        for n, size, block, halo in zip((height, width), self.key_tile, self.geometry.block, self.geometry.halo):
            shifted = block % size == 0 and 2 * halo <= size and n > 2 * block
            count *= ceil_div(n + (size // 2 if shifted else 0), size)
        return count


_plan = functools.lru_cache(maxsize=4096)(_Plan)
