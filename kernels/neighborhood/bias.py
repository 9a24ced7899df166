"""Gradient of the relative table where neighborhoods overlap.

A program owns one row displacement of one head and adds up dS over the query rows of its share of the batch: a segment
of BQ queries against the BK keys of the displaced row, whose relative columns are the same for every segment, so the
sum stays in registers. Partial sums are bounded by the number of programs, and their order is fixed.
"""

import triton
import triton.language as tl

from .._blocks import LOG2E, MASKED, load_lse, load_rows, logit_base, lse_of, probabilities
from .maps import _within, window_start


@triton.jit
def _query_rows(e, n, K: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """Inclusive range of the queries that can see the key displaced by e in a group of n (a superset for S > 1)."""
    if C:  # none sees what lies ahead
        return tl.maximum(-e, 0), tl.where(e > 0, -1, n - 1)
    lo = tl.maximum(-e, 0)
    hi = n - 1 - tl.maximum(e, 0)
    if e > K - 1 - K // 2 + S // 2:  # only where the window is pushed inwards at the start
        hi = tl.minimum(hi, K - 1 - e)
    if -e > S - 1 - S // 2 + K // 2:  # only where it is pushed inwards at the end
        lo = tl.maximum(lo, n - K - e)
    return lo, hi


@triton.jit
def bias_backward(
    p_q, p_k, p_v, p_bias, p_grad, p_lse, p_delta, p_partial,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    batch, height, width, heads, dil_y, dil_x, slices, scale,
    P: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, IMAGES: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """partial[slice, head, row displacement, chunk, BQ, BK] = sum of dS; delta comes from the dq kernel."""
    ROWS: tl.constexpr = 2 * P[0] - 1
    CHUNKS: tl.constexpr = (BQ + 2 * P[1] - 2 + BK - 1) // BK
    pid = tl.program_id(0)
    head = pid % heads
    rest = pid // heads
    e = rest % ROWS - (P[0] - 1)
    chunk = (rest // ROWS) % CHUNKS
    part = rest // (ROWS * CHUNKS)
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    o_m = tl.arange(0, BQ)
    o_n = chunk * BK + tl.arange(0, BK)
    b_sum = tl.zeros([BQ, BK], tl.float32)
    b_column = o_n[None, :] - o_m[:, None]  # relative column + K - 1
    m_column = (b_column >= 0) & (b_column < 2 * P[1] - 1)
    b_bias = tl.load(p_bias + (head * ROWS + e + P[0] - 1) * (2 * P[1] - 1) + b_column, mask=m_column, other=0.0)
    b_bias = b_bias.to(tl.float32) * logit_base(SPLIT)

    unit = scale * logit_base(SPLIT)
    lo, hi = _query_rows(e, tl.cdiv(height, dil_y), P[0], P[2], P[4])
    per_group = tl.maximum(hi - lo + 1, 0)
    segments = tl.cdiv(tl.cdiv(width, dil_x), BQ)
    work = tl.cdiv(batch, IMAGES) * dil_y * dil_x * per_group * segments
    share = tl.cdiv(work, slices)
    for w in range(part * share, tl.minimum((part + 1) * share, work)):
        # one place of the map in IMAGES images: its masks and addresses are worked out once
        j0 = (w % segments) * BQ
        rest_w = w // segments
        row = rest_w % per_group
        rest_w = rest_w // per_group
        g_x = rest_w % dil_x
        rest_w = rest_w // dil_x
        g_y = rest_w % dil_y
        b0 = (rest_w // dil_y) * IMAGES
        n_i = (height - g_y + dil_y - 1) // dil_y
        n_j = (width - g_x + dil_x - 1) // dil_x
        lo, hi = _query_rows(e, n_i, P[0], P[2], P[4])
        q_i = tl.full([BQ], 0, tl.int32) + (lo + row)
        k_i = tl.full([BK], 0, tl.int32) + (lo + row + e)
        q_j = j0 + o_m
        k_j = j0 - (P[1] - 1) + o_n
        m_q = (q_j < n_j) & (q_i <= hi)
        m_q = m_q & _within(q_i, q_i + e, window_start(q_i, n_i, P[0], P[2], P[4]), P[0], P[4])
        m_k = (k_j >= 0) & (k_j < n_j) & (k_i <= hi + e)
        ok = _within(
            q_j[:, None], k_j[None, :], window_start(q_j, n_j, P[1], P[3], P[5])[:, None], P[1], P[5]
        )
        b_add = tl.where(ok, b_bias, MASKED)
        y = g_y + q_i * dil_y
        x = g_x + q_j * dil_x
        ky = g_y + k_i * dil_y
        kx = g_x + k_j * dil_x
        o_row = y * width + x
        for i in range(b0, tl.minimum(b0 + IMAGES, batch)):
            b = tl.cast(i, tl.int64)
            o_image = (b * heads + head) * height * width
            b_q = load_rows(p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, y, x, m_q, D, BD, UPCAST)
            b_k = load_rows(p_k + (b * k_b + head * k_h) * ALIGN, k_y, k_x, ALIGN, ky, kx, m_k, D, BD, UPCAST)
            b_v = load_rows(
                p_v + (b * v_b + head * v_h) * ALIGN, v_y, v_x, ALIGN, ky, kx, m_k, DV, BDV, UPCAST
            )
            b_g = load_rows(p_grad + b * height * o_y * UNIT + head * DV, o_y, o_x, UNIT, y, x, m_q, DV, BDV, UPCAST)
            b_lse, b_norm = load_lse(lse_of(p_lse, o_image, SPLIT), o_row, m_q, SPLIT)
            b_delta = tl.load(p_delta + o_image + o_row, mask=m_q, other=0.0)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_add
            b_p = probabilities(b_s, LOG2E if SPLIT else 1.0, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
            b_sum += b_p * (b_dp - b_delta[:, None])

    p_partial += (((part.to(tl.int64) * heads + head) * ROWS + e + P[0] - 1) * CHUNKS + chunk) * BQ * BK
    tl.store(p_partial + o_m[:, None] * BK + tl.arange(0, BK)[None, :], b_sum)


@triton.jit
def overlapping_cell(d, m, P: tl.constexpr, T: tl.constexpr):
    """For ``fold_bias``: where query m of a segment meets displacement d in [row displacement, chunk, BQ, BK]."""
    W: tl.constexpr = 2 * P[1] - 1
    CHUNKS: tl.constexpr = (T[0] + W - 1 + T[1] - 1) // T[1]
    n = d % W + m
    return ((d // W * CHUNKS + n // T[1]) * T[0] + m) * T[1] + n % T[1], n < CHUNKS * T[1]
