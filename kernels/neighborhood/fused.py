"""Neighborhood attention on the Triton tile engine: what is launched, and when it can run.

Layouts: q, k [B, H, W, heads, D], v [B, H, W, heads, Dv], any strides with the last dimension contiguous; out, its
gradient and lse are contiguous. The relative table's gradient is a sum of dS over all pairs of one displacement: kept
in registers by the closed kernel (kernel = group) and by :mod:`.joint` (small windows), else by :mod:`.bias`.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from .. import _attend as engine
from .. import _attend_closed as closed
from .. import _attend_queries as queries
from .. import _host as host
from .._fold import fold_bias
from .._launch import launch, unspecialised
from .._register import lse_shape
from . import bias as overlapping
from . import joint, maps, tuning
from .geometry import Geometry

SUMS = 1 << 25  # of the table's gradient, about

FORWARD = unspecialised(engine.attend_forward)
BACKWARD_Q = unspecialised(queries.attend_backward_q)
BACKWARD_KV = unspecialised(engine.attend_backward_kv)
CLOSED_FORWARD = unspecialised(closed.attend_closed_forward)
CLOSED_BACKWARD = unspecialised(closed.attend_closed_backward)
BACKWARD_Q_AND_TABLE = unspecialised(queries.attend_backward_q_and_table)
JOINT_BACKWARD = unspecialised(joint.backward_q_and_bias)
FOLD_BIAS = unspecialised(fold_bias)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float, part: bool = False
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, lse float32 of :func:`lse_shape`).

    ``part``: the neighborhood is but a part of what queries attend to.
    """
    batch, height, width, heads, _ = q.shape
    q, k, v = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v)
    out = torch.empty(batch, height, width, heads, v.shape[-1], device=q.device, dtype=q.dtype)
    lse = torch.empty(lse_shape(q), device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    bias = _table(q, bias, geometry, scale)
    strides, align = host.strides(q, k, v)
    plan = _plan(geometry, height, width, q.shape[-1], v.shape[-1], q.dtype, bias is not None, align, host.tf32(), part,
                 host.twins(strides))
    tensors = (q, k, v, q if bias is None else bias, out, lse)
    table = 1 if bias is None else bias.numel()
    if plan.closed:
        windows = batch * plan.tiles
        slices = min(windows, host.programs(q.device, heads))
        launch(CLOSED_FORWARD, slices * heads, plan.forward, *tensors, *strides, height, width, heads, plan.tiles,
               windows, *geometry.dilation, scale, table)  # fmt: skip
    else:
        launch(FORWARD, batch * heads * plan.tiles, plan.forward, *tensors, *strides, height, width, heads, plan.tiles,
               *geometry.dilation, scale, table)  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    geometry: Geometry, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, bias_grad: bool, part: bool = False,
) -> Tensor | None:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous); returns the table's float32 gradient.

    ``part``: the neighborhood is but a part of what queries attend to, and out and lse are those of the whole.
    """
    batch, height, width, heads, _ = q.shape
    q, k, v, grad_out = host.contiguous_rows(q), host.contiguous_rows(k), host.contiguous_rows(v), grad_out.contiguous()
    if out.numel() == 0:
        return torch.zeros(bias.shape, device=q.device, dtype=torch.float32) if bias_grad else None
    bias = _table(q, bias, geometry, scale)
    strides, align = host.strides(q, k, v, dq, dk, dv)
    plan = _plan(geometry, height, width, q.shape[-1], v.shape[-1], q.dtype, bias is not None, align, host.tf32(), part,
                 host.twins(strides))
    table, entries = (q, 1) if bias is None else (bias, bias.numel())
    if plan.closed:
        windows = batch * plan.tiles
        slices = min(windows, host.programs(q.device, heads))
        cells = 64 * 64
        partial = torch.empty(slices * heads * cells if bias_grad else 0, device=q.device, dtype=torch.float32)
        launch(CLOSED_BACKWARD, slices * heads, plan.closed_backward[bias_grad], q, k, v, table, grad_out, lse,
               dq, dk, dv, partial, *strides, height, width, heads, plan.tiles, windows, *geometry.dilation,
               scale, entries)  # fmt: skip
        return _fold(partial, bias, slices, cells, plan) if bias_grad else None

    delta = torch.empty(lse.shape[:4], device=q.device, dtype=torch.float32)
    numbers = (*geometry.dilation, scale, entries)
    joint_pass = bias_grad and plan.joint is not None
    if joint_pass:
        room = max(1, host.programs(q.device, heads) // 2)  # two of these fit on a multiprocessor
        images = max(1, min(joint.IMAGES, batch * plan.joint_tiles // room))
        slices = min(plan.joint_tiles * math.ceil(batch / images), room)
        cells = (plan.joint["ROWS"] + 1) * math.prod(joint.TILE) // 2 * joint.COLUMNS
        partial = torch.empty(slices * heads * cells, device=q.device, dtype=torch.float32)
        launch(JOINT_BACKWARD, slices * heads, plan.joint, q, k, v, table, out, grad_out, lse, delta, dq, partial,
               *strides[:16], batch, images, height, width, heads, plan.joint_tiles, *geometry.dilation, slices,
               scale)  # fmt: skip
    elif bias_grad:
        cells = plan.cells
        slices = min(batch * plan.table_tiles, _slices(host.programs(q.device, heads), heads * cells))
        partial = torch.empty(slices * heads * cells, device=q.device, dtype=torch.float32)
        launch(BACKWARD_Q_AND_TABLE, slices * heads, plan.table, q, k, v, table, out, grad_out, lse, delta, dq, partial,
               *strides[:16], batch, height, width, heads, plan.table_tiles, *geometry.dilation, slices, scale,
               entries)  # fmt: skip
    else:
        launch(BACKWARD_Q, batch * heads * plan.query_tiles, plan.queries, q, k, v, table, out, grad_out, lse, delta,
               dq, *strides[:16], height, width, heads, plan.query_tiles, *numbers)  # fmt: skip
    launch(BACKWARD_KV, batch * heads * plan.key_tiles, plan.keys, q, k, v, table, grad_out, lse, delta, dk, dv,
           *strides[:12], *strides[16:], height, width, heads, plan.key_tiles, *numbers)  # fmt: skip
    return _fold(partial, bias, slices, cells, plan) if bias_grad else None


class _Plan:
    """The launches' constants for one geometry, map and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, geometry: Geometry, height: int, width: int, d: int, dv: int, dtype: torch.dtype, bias: bool,
                 align: int, tf32: bool, part: bool = False, twins: bool = False) -> None:  # fmt: skip
        wide = dtype == torch.float32
        head_dim = host.padded(max(d, dv))
        shared = host.constants(d, dv, dtype, bias, align, tf32) | dict(
            LOCATE=maps.locate, PLACE=maps.place, OWN=maps.place, BIAS=maps.pair_offset,
            P=(*geometry.kernel, *geometry.stride, *map(int, geometry.causal), int(bias)))  # fmt: skip
        count = math.prod(2 * n - 1 for n in geometry.kernel)
        fold = dict(P=geometry.kernel, COUNT=count, BLOCK=32)
        side = tuning.closed_side(geometry.kernel)
        # the closed backward takes a query's delta over its window, which is not all of it where that is a part
        self.closed = side is not None and head_dim <= 64 and geometry.is_closed(height, width) and not part
        if self.closed:
            self.tiles = geometry.dilation[0] * geometry.dilation[1]
            warps, forward_stages, backward_stages = tuning.closed_launch(head_dim, wide)
            # all groups are alike, so the maps that tell them apart are never asked
            shared |= dict(ALIKE=True, CLAMP=True, KINDS=None, KIND=None, PICK=None, PART=None, TH=side[0], TW=side[1],
                           num_warps=warps, TWINS=twins)  # fmt: skip
            self.forward = shared | dict(num_stages=forward_stages)
            self.fold = fold | dict(CELL=closed.closed_cell, T=side, DEPTH=side[0] * side[1])
            self.closed_backward = [
                shared | dict(BIAS_GRAD=grad, num_stages=backward_stages) for grad in (False, True)
            ]
            return

        order = dict(BY_HEAD=tuning.by_head(geometry.kernel, head_dim))
        walk = dict(SPAN=maps.key_span, TWINS=twins)

        def open_pass(tiles: tuning.Tiles, **more: object) -> tuple[int, dict]:
            count = math.prod(
                dil * math.ceil(math.ceil(n / dil) / t)
                for n, dil, t in zip((height, width), geometry.dilation, tiles.tile, strict=True)
            )
            return count, shared | more | dict(
                MASK=maps.neighbors, NEAR=maps.table_offset, TH=tiles.tile[0], TW=tiles.tile[1], CH=tiles.chunk[0],
                CW=tiles.chunk[1], **tiles.options)  # fmt: skip

        tiles = tuning.forward_tiles(geometry.kernel, geometry.stride, head_dim, wide, bias)
        self.tiles, self.forward = open_pass(
            tiles, **walk, **order,
            WHOLE=not bias and geometry.is_shared(height, width, tiles.tile, tiles.chunk))  # fmt: skip
        self.key_tiles, self.keys = open_pass(
            tuning.key_tiles(geometry.kernel, head_dim, wide), SPAN_T=maps.query_span, **order)  # fmt: skip
        exact = dict(EXACT_DELTA=wide and not tf32 and not part)
        self.query_tiles, self.queries = open_pass(
            tuning.query_tiles(geometry.kernel, geometry.stride, head_dim, wide), **walk, **exact, **order)
        tiles = tuning.table_tiles(head_dim, wide)
        before, places = overlapping.places(geometry, tiles.tile, tiles.chunk)
        self.cells = math.prod(places) * math.prod(overlapping.sums(tiles.tile, tiles.chunk))
        self.table_tiles, self.table = open_pass(
            tiles, **walk | exact | dict(
                P=shared["P"] + (before, places, tiles.chunk), SPAN=overlapping.gridded_span,
                KEY_AT=overlapping.on_map, TALLY=overlapping.add_displaced, CELLS=self.cells))  # fmt: skip
        reach = [-(-(t + c - 1) // c) for t, c in zip(tiles.tile, tiles.chunk, strict=True)]
        self.fold = fold | dict(CELL=overlapping.displaced_cell, T=(before, places, tiles.tile, tiles.chunk, *reach),
                                DEPTH=triton.next_power_of_2(math.prod(reach)))  # fmt: skip

        # sums of wider heads would not fit into registers
        found = None if wide or head_dim > 32 or not bias else joint.box(geometry)
        self.joint = None
        if found is not None:
            (th, tw), cw = joint.TILE, joint.COLUMNS
            names = ("P", "D", "BD", "DV", "BDV", "ALIGN", "PRECISION", "UPCAST", "FTZ", "SPLIT")
            self.joint_tiles, _ = open_pass(tuning.Tiles(joint.TILE, (1, cw), 4, 2))
            self.joint = {name: shared[name] for name in names} | dict(
                TWINS=walk["TWINS"], TH=th, TW=tw, CW=cw, BEFORE=found.before, NEEDS=found.needs, ROWS=found.rows,
                num_warps=4, num_stages=2)  # fmt: skip
            depth = th // 2 * tw
            self.fold = fold | dict(
                CELL=joint.joint_cell, T=(tw, cw, *found.before, found.rows, depth), DEPTH=depth)  # fmt: skip


_plan = functools.lru_cache(maxsize=4096)(_Plan)


def forward_tiling(
    geometry: Geometry, height: int, width: int, head_dim: int, dtype: torch.dtype, bias: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of queries that a program of the forward pass owns, and of keys that it takes at a time."""
    plan = _plan(geometry, height, width, head_dim, head_dim, dtype, bias, 8, False)
    tile = plan.forward["TH"], plan.forward["TW"]
    return tile, tile if plan.closed else (plan.forward["CH"], plan.forward["CW"])


def _table(q: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> Tensor | None:
    """The table as the kernels read it; zeros for a scale that is not positive, which they only take beside a bias."""
    if bias is not None:
        return bias.float().contiguous()
    if scale > 0:
        return None
    return torch.zeros(q.shape[3], *(2 * n - 1 for n in geometry.kernel), device=q.device, dtype=torch.float32)


def _slices(programs: int, sums: int) -> int:
    """How many programs a head: whether 2, 3, 4 or 6 fit on a multiprocessor, none should stand idle in the end."""
    most = next((n for n in (3 * programs, programs) if n * sums <= SUMS), programs // 2)
    return max(1, most)


def _fold(partial: Tensor, bias: Tensor, slices: int, cells: int, plan: _Plan) -> Tensor:
    heads = bias.shape[0]
    total = partial.view(slices, heads, cells).sum(0)
    dbias = torch.empty(bias.shape, device=bias.device, dtype=torch.float32)
    blocks = triton.cdiv(plan.fold["COUNT"], plan.fold["BLOCK"])
    launch(FOLD_BIAS, blocks * heads, plan.fold, total, dbias, heads, cells)
    return dbias
