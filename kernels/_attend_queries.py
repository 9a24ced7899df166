"""The tile engine's dq kernels; :mod:`._attend` says what the index maps answer.

:func:`attend_backward_q` is a program a tile. Where an additive bias is a small table that all tiles share, its
gradient is a sum of dS over all pairs at an entry: :func:`attend_backward_q_and_table` adds it up in the same walk, by
programs that take tile after tile and have a table of sums each.
"""

import triton
import triton.language as tl

from ._attend import _key_place, _next_chunk, _program, _row, _there
from ._blocks import load_lse, load_rows, lse_of, probabilities, store_rows
from ._scores import chunk_bias, masked_scores, related_scores, score_unit

ZEROS = tl.constexpr(512)


@triton.jit
def _tile_of_queries(
    head, b, i0, j0, n_i, n_j, g, p_sums,
    p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
    height, width, heads, scale, table,
    PLACE: tl.constexpr, OWN: tl.constexpr, SPAN: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
    EXACT_DELTA: tl.constexpr, KEY: tl.constexpr, QUERY_AT: tl.constexpr, KEY_AT: tl.constexpr, RELATE: tl.constexpr,
    FEATURE: tl.constexpr, UNRELATE: tl.constexpr, LIST: tl.constexpr, NEAR: tl.constexpr, TWINS: tl.constexpr,
    TALLY: tl.constexpr,
):  # fmt: skip
    if LIST is not None:
        g = LIST(p_bias, table, b, g, P)
    if TWINS:
        v_y, v_x = k_y, k_x
    p_q += (b * q_b + head * q_h) * ALIGN
    p_k += (b * k_b + head * k_h) * ALIGN
    p_v += (b * v_b + head * v_h) * ALIGN
    p_dq += (b * d_b + head * d_h) * ALIGN
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    p_out += b * height * width * o_x * UNIT + head * DV
    p_grad += b * height * width * o_x * UNIT + head * DV
    o_image = (b * heads + head) * height * width
    o_m = tl.arange(0, TH * TW)
    o_n = tl.arange(0, CH * CW)
    q_i = i0 + o_m // TW
    q_j = j0 + o_m % TW
    m_q = (q_i < n_i) & (q_j < n_j)
    y, x = PLACE(q_i, q_j, g, P)
    m_q = _there(y, x, m_q, g, QUERY_AT, P)
    o_row = y * width + x
    own_y, own_x = OWN(q_i, q_j, g, P)
    b_q = load_rows(p_q, q_y, q_x, ALIGN, own_y, own_x, m_q, D, BD, UPCAST)  # [BM, BD]
    b_g = load_rows(p_grad, o_y, o_x, UNIT, y, x, m_q, DV, BDV, UPCAST)  # [BM, BDV]
    b_lse, b_norm = load_lse(lse_of(p_lse, o_image, SPLIT), o_row, m_q, SPLIT)
    if EXACT_DELTA:
        b_delta = tl.zeros([TH * TW], tl.float32)
        b_total = tl.zeros([TH * TW], tl.float32)
    else:
        b_out = load_rows(p_out, o_y, o_x, UNIT, y, x, m_q, DV, BDV, False)
        b_delta = tl.sum(b_g.to(tl.float32) * b_out.to(tl.float32), 1)  # [BM]
    b_dq = tl.zeros([TH * TW, BD], tl.float32)
    if RELATE is not None:
        b_r, b_c = RELATE(p_bias, table, b_q, q_i, q_j, o_image, o_row, m_q, P, BD, PRECISION, UPCAST)
        b_dr = tl.zeros(b_r.shape, tl.float32)
        b_dc = tl.zeros(b_c.shape, tl.float32)

    i_lo, i_hi, j_lo, j_hi = SPAN(i0, j0, n_i, n_j, g, TH, TW, P)
    unit = score_unit(scale, HAS_BIAS)
    for step in tl.static_range(2 if EXACT_DELTA else 1):
        c_i, c_j = i_lo, j_lo
        for _ in range(tl.cdiv(i_hi - i_lo, CH) * tl.cdiv(j_hi - j_lo, CW)):
            k_i = c_i + o_n // CW
            k_j = c_j + o_n % CW
            m_k = (k_i < i_hi) & (k_j < j_hi)
            ky, kx = _key_place(_row(c_i, k_i, LIST), k_j, g, PLACE, KEY, P)
            m_k = _there(ky, kx, m_k, g, KEY_AT, P)
            b_k = load_rows(p_k, k_y, k_x, ALIGN, ky, kx, m_k, D, BD, UPCAST)
            b_v = load_rows(p_v, v_y, v_x, ALIGN, ky, kx, m_k, DV, BDV, UPCAST)
            if RELATE is None:
                p_near, near = p_bias, 0
                if HAS_BIAS and NEAR is not None:
                    p_near, near = chunk_bias(p_bias, head, c_i - q_i, c_j - q_j, o_n, 1, CW, NEAR, P)
                b_s = masked_scores(b_q, b_k, scale, p_near, near, table, head, q_i[:, None], q_j[:, None],
                                    k_i[None, :], k_j[None, :], n_i, n_j, g, MASK, m_k[None, :], BIAS, NEAR, P,
                                    HAS_BIAS, PRECISION, FTZ)  # fmt: skip
            else:
                b_u, b_w, seen = FEATURE(k_i, k_j, c_i, g, P, b_k.dtype)
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
                b_s = related_scores(b_s, b_r, b_c, tl.trans(b_u), tl.trans(b_w), seen[None, :], scale, PRECISION)
            b_p = probabilities(b_s, unit, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
            if EXACT_DELTA and step == 0:
                b_delta += tl.sum(b_p * b_dp, 1)
                b_total += tl.sum(b_p, 1)
            else:
                b_ds = b_p * (b_dp - b_delta[:, None])  # [BM, BN]
                b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
                if TALLY is not None:
                    TALLY(p_sums, b_ds.to(b_k.dtype), c_i - i0, c_j - j0, P, TH, TW, CH, CW, PRECISION)
                if RELATE is not None:
                    b_dr = tl.dot(b_ds.to(b_u.dtype), b_u, b_dr, input_precision=PRECISION)
                    b_dc = tl.dot(b_ds.to(b_w.dtype), b_w, b_dc, input_precision=PRECISION)
            c_i, c_j = _next_chunk(c_i, c_j, i_lo, i_hi, CH, CW)
        if EXACT_DELTA and step == 0:
            if LIST is None:
                b_delta /= tl.where(m_q, b_total, 1.0)
            else:
                b_delta /= tl.where(m_q & (b_total > 0), b_total, 1.0)

    tl.store(p_delta + o_image + o_row, b_delta, mask=m_q)
    if RELATE is None:
        store_rows(p_dq, d_y, d_x, ALIGN, y, x, m_q, b_dq * scale, D, BD)
    else:
        b_add = UNRELATE(p_bias, table, b_dr, b_dc, q_i, q_j, o_image, o_row, m_q, P, BD, PRECISION, UPCAST)
        store_rows(p_dq, d_y, d_x, ALIGN, y, x, m_q, b_dq * scale + b_add, D, BD)


@triton.jit
def attend_backward_q(
    p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
    height, width, heads, tiles, a_y, a_x, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, SPAN: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
    EXACT_DELTA: tl.constexpr,
    KEY: tl.constexpr = None, QUERY_AT: tl.constexpr = None, KEY_AT: tl.constexpr = None, RELATE: tl.constexpr = None,
    FEATURE: tl.constexpr = None, UNRELATE: tl.constexpr = None, LIST: tl.constexpr = None, NEAR: tl.constexpr = None,
    TWINS: tl.constexpr = False, BY_HEAD: tl.constexpr = False,
):  # fmt: skip
    """dq of a tile of queries; also delta = sum(grad * out) per query, which the other gradients read afterwards.

    ``EXACT_DELTA`` takes the mean of dp under p instead, in a walk of its own: where one key takes nearly all the
    weight, dp - delta cancels, and only so do the rounding errors of dp, and of p's sum, cancel too.
    """
    head, t, b = _program(tiles, heads, BY_HEAD)
    i0, j0, n_i, n_j, g = LOCATE(t, height, width, a_y, a_x, TH, TW, P)
    if (i0 >= n_i) | (j0 >= n_j):
        return
    _tile_of_queries(
        head, b, i0, j0, n_i, n_j, g, p_dq,
        p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq,
        q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
        height, width, heads, scale, table,
        PLACE, OWN, SPAN, MASK, BIAS, P, TH, TW, CH, CW, D, BD, DV, BDV, ALIGN, HAS_BIAS, PRECISION, UPCAST, FTZ, SPLIT,
        EXACT_DELTA, KEY, QUERY_AT, KEY_AT, RELATE, FEATURE, UNRELATE, LIST, NEAR, TWINS, None,
    )  # fmt: skip


@triton.jit
def attend_backward_q_and_table(
    p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq, p_sums,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
    batch, height, width, heads, tiles, a_y, a_x, slices, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, SPAN: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
    EXACT_DELTA: tl.constexpr, KEY_AT: tl.constexpr, NEAR: tl.constexpr, TWINS: tl.constexpr, TALLY: tl.constexpr,
    CELLS: tl.constexpr,
):  # fmt: skip
    """dq and delta of a slice of all tiles, and sums[slice, head, CELLS] of its dS, in which a table's gradient is.

    ``TALLY(p_sums, b_ds, i, j, P, TH, TW, CH, CW, PRECISION)`` adds to the sums what a block [TH * TW, CH * CW] of dS
    gives whose keys begin (i, j) from where its queries do. To a sum only one thread may ever add.
    """
    head = tl.program_id(0) % heads
    part = tl.program_id(0) // heads
    p_sums += (part.to(tl.int64) * heads + head) * CELLS
    for o in range(0, CELLS, ZEROS):
        o_n = o + tl.arange(0, ZEROS)
        tl.store(p_sums + o_n, tl.zeros([ZEROS], tl.float32), mask=o_n < CELLS)
    tl.debug_barrier()  # other threads than the one that wrote a zero add to it
    work = batch * tiles
    share = tl.cdiv(work, slices)
    for w in range(part * share, tl.minimum((part + 1) * share, work)):
        i0, j0, n_i, n_j, g = LOCATE(w % tiles, height, width, a_y, a_x, TH, TW, P)
        if (i0 < n_i) & (j0 < n_j):
            _tile_of_queries(
                head, (w // tiles).to(tl.int64), i0, j0, n_i, n_j, g, p_sums,
                p_q, p_k, p_v, p_bias, p_out, p_grad, p_lse, p_delta, p_dq,
                q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h,
                height, width, heads, scale, table,
                PLACE, OWN, SPAN, MASK, BIAS, P, TH, TW, CH, CW, D, BD, DV, BDV, ALIGN, HAS_BIAS, PRECISION, UPCAST,
                FTZ, SPLIT, EXACT_DELTA, None, None, KEY_AT, None, None, None, None, NEAR, TWINS, TALLY,
            )  # fmt: skip
