"""Gradients of the queries and of the relative table in one pass, for windows of at most 9 a side.

A program keeps one relative position of queries and keys, and takes it to tile after tile and image after image: of a
tile of TH x TW queries all that its windows cover lies in one box of keys, which begins the same way off the tile
everywhere. So a pair's displacement depends on its place in tile and box alone, and dS, which the queries' gradient
needs anyway, is added up in registers. Near the end of an axis, where windows are pushed inwards, the last tile moves
back until the box holds them; the queries that it shares with the tile before are not its own.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .._blocks import load_lse, load_rows, lse_of, probabilities, store_rows
from .._scores import chunk_bias, masked_scores, score_unit
from .geometry import Geometry
from .maps import locate, neighbors, place, table_offset

TILE, COLUMNS = (8, 8), 16     # rows and columns of queries that a program takes, and of a row of keys at a time
IMAGES = 8                     # at most, that it takes at one place of the map: addresses are worked out once


class Box(NamedTuple):
    """Where the keys of a tile lie: so many (rows, columns) before it, in so many chunks."""

    before: tuple[int, int]
    needs: tuple[int, int]  # queries from a tile's first one to the end of the axis, at least
    rows: int               # of keys


def box(geometry: Geometry) -> Box | None:
    """The box of a neighborhood, or None where it does not fit into registers or tiles do not share one."""
    before, needs, sides = [], [], []
    for k, s, causal, tile in zip(geometry.kernel, geometry.stride, geometry.causal, TILE, strict=True):
        reach = k // 2 - s // 2  # of the first query: its leader is s // 2 ahead, the window k // 2 before that
        need = k - reach         # a window pushed inwards begins k before the end
        if causal or tile % s or reach < 0 or tile < need + s - 1 or tile < reach + s:
            return None
        before.append(reach)
        needs.append(need)
        sides.append(tile - s + k)
    if sides[1] > COLUMNS:
        return None
    return Box((before[0], before[1]), (needs[0], needs[1]), sides[0] + sides[0] % 2)


@triton.jit
def _moved_back(i0, n, NEED: tl.constexpr, S: tl.constexpr):
    """Where a tile at i0 of a group of n begins, on a multiple of the stride."""
    return tl.minimum(i0, (n - NEED) // S * S)


@triton.jit
def _rows_apart(b, TH: tl.constexpr, TW: tl.constexpr, CW: tl.constexpr):
    """Of a block [TH * TW, 2 * CW] that of even and odd rows of queries, and of keys: four [TH / 2, TW, CW]."""
    b_0, b_1 = tl.split(tl.permute(tl.reshape(b, [TH // 2, 2, TW, 2, CW]), (0, 2, 4, 1, 3)))
    b_00, b_10 = tl.split(b_0)
    b_01, b_11 = tl.split(b_1)
    return b_00, b_10, b_01, b_11


@triton.jit
def _plus(sums, b, I: tl.constexpr):
    return sums[:I] + (sums[I] + b,) + sums[I + 1:]


@triton.jit
def backward_q_and_bias(
    p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq, p_partial,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
    batch, images, height, width, heads, tiles, dil_y, dil_x, slices, scale,
    P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CW: tl.constexpr, BEFORE: tl.constexpr,
    NEEDS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    FTZ: tl.constexpr, SPLIT: tl.constexpr, TWINS: tl.constexpr,
):  # fmt: skip
    """dq and delta, and partial[slice, head, chunk, query, key] = sum of dS."""
    if TWINS:
        v_y, v_x = k_y, k_x
    head = tl.program_id(0) % heads
    part = tl.program_id(0) // heads
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    o_m = tl.arange(0, TH * TW)
    o_n = tl.arange(0, 2 * CW)
    unit = score_unit(scale, True)
    b_sums = (tl.zeros([TH // 2, TW, CW], tl.float32),) * (ROWS + 1)

    # of the box's first rows; those below are as many lines of the table further, which costs nothing
    p_near, near = chunk_bias(p_bias, head, -BEFORE[0] - o_m // TW, -BEFORE[1] - o_m % TW, o_n, 1, CW, table_offset, P)

    work = tiles * tl.cdiv(batch, images)
    share = tl.cdiv(work, slices)
    for w in range(part * share, tl.minimum((part + 1) * share, work)):
        i0, j0, n_i, n_j, g = locate(w % tiles, height, width, dil_y, dil_x, TH, TW, P)
        first_i, first_j = _moved_back(i0, n_i, NEEDS[0], P[2]), _moved_back(j0, n_j, NEEDS[1], P[3])
        q_i = first_i + o_m // TW
        q_j = first_j + o_m % TW
        m_q = (q_i >= i0) & (q_j >= j0) & (q_i < n_i) & (q_j < n_j)
        y, x = place(q_i, q_j, g, P)
        o_row = y * width + x
        b0 = w // tiles * images
        for image in range(b0, tl.minimum(b0 + images, batch)):
            b = tl.cast(image, tl.int64)
            b_q = load_rows(p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, y, x, m_q, D, BD, UPCAST)
            p_row = b * height * o_y * UNIT + head * DV
            b_g = load_rows(p_grad + p_row, o_y, o_x, UNIT, y, x, m_q, DV, BDV, UPCAST)
            b_out = load_rows(p_out + p_row, o_y, o_x, UNIT, y, x, m_q, DV, BDV, False)
            o_image = (b * heads + head) * height * width
            b_lse, b_norm = load_lse(lse_of(p_lse, o_image, SPLIT), o_row, m_q, SPLIT)
            b_delta = tl.sum(b_g.to(tl.float32) * b_out.to(tl.float32), 1)
            b_dq = tl.zeros([TH * TW, BD], tl.float32)
            afresh = tl.minimum(image, 0)  # 0: or what follows from places would wait for its image in registers
            for c in tl.static_range(0, ROWS, 2):
                k_i = first_i + (c - BEFORE[0]) + o_n // CW + afresh
                k_j = first_j - BEFORE[1] + o_n % CW
                m_k = (k_i >= 0) & (k_j >= 0) & (k_i < n_i) & (k_j < n_j)
                ky, kx = place(k_i, k_j, g, P)
                b_k = load_rows(p_k + (b * k_b + head * k_h) * ALIGN, k_y, k_x, ALIGN, ky, kx, m_k, D, BD,
                                UPCAST)  # fmt: skip
                b_v = load_rows(p_v + (b * v_b + head * v_h) * ALIGN, v_y, v_x, ALIGN, ky, kx, m_k, DV, BDV,
                                UPCAST)  # fmt: skip
                b_s = masked_scores(b_q, b_k, scale, p_near, near + c * (2 * P[1] - 1), 0, head, q_i[:, None],
                                    q_j[:, None], k_i[None, :], k_j[None, :], n_i, n_j, g, neighbors, m_k[None, :],
                                    None, table_offset, P, True, PRECISION, FTZ)  # fmt: skip
                b_p = probabilities(b_s, unit, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)
                b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
                b_ds = b_p * (b_dp - b_delta[:, None])
                b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
                b_00, b_10, b_01, b_11 = _rows_apart(b_ds, TH, TW, CW)
                b_sums = _plus(_plus(_plus(b_sums, b_01, c + 2), b_00 + b_11, c + 1), b_10, c)
            tl.store(p_delta + o_image + o_row, b_delta, mask=m_q)
            store_rows(p_dq + (b * d_b + head * d_h) * ALIGN, d_y, d_x, ALIGN, y, x, m_q, b_dq * scale, D, BD)

    SIZE: tl.constexpr = TH // 2 * TW * CW
    p_partial += (part.to(tl.int64) * heads + head) * (ROWS + 1) * SIZE
    o_w, o_x, o_k = tl.arange(0, TH // 2), tl.arange(0, TW), tl.arange(0, CW)
    p_partial += (o_w[:, None, None] * TW + o_x[None, :, None]) * CW + o_k[None, None, :]
    for r in tl.static_range(ROWS + 1):
        tl.store(p_partial + r * SIZE, b_sums[r])


@triton.jit
def joint_cell(d, m, P: tl.constexpr, T: tl.constexpr):
    """For ``fold_bias``: where column and pair of rows m of a tile's queries meet displacement d in the sums.

    ``T``: columns of tile and box, rows and columns of the box before the tile, its rows, and how many m there are.
    """
    W: tl.constexpr = 2 * P[1] - 1
    pair = m // T[0]
    line = d // W - (P[0] - 1) + T[2] + 1 + 2 * pair
    column = d % W - (P[1] - 1) + T[3] + m % T[0]
    ok = (line >= 0) & (line <= T[4]) & (column >= 0) & (column < T[1])
    return (line * T[5] + m) * T[1] + column, ok
