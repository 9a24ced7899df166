"""Gradient of the bias of windows that are larger than a tile.

A program owns a block of queries and one of keys of one head's window, and adds up dS over its share of all windows of
the batch, so that the sum stays in registers. Partial sums are bounded by the number of programs, and their order is
fixed.
"""

import triton
import triton.language as tl

from .._blocks import LOG2E, MASKED, load_lse, load_rows, logit_base, lse_of, probabilities


@triton.jit
def bias_backward(
    p_q, p_k, p_v, p_bias, p_grad, p_lse, p_delta, p_partial,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, tiles, windows, a_y, a_x, slices, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, PART: tl.constexpr, BIAS: tl.constexpr,
    P: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """partial[slice, head, N queries, N keys] = sum of dS; delta comes from the dq kernel. Packed maps."""
    N: tl.constexpr = P[0] * P[1]
    ROWS: tl.constexpr = (N + BM - 1) // BM
    COLUMNS: tl.constexpr = (N + BN - 1) // BN
    pid = tl.program_id(0)
    head = pid % heads
    rest = pid // heads
    q_j = rest % ROWS * BM + tl.arange(0, BM)
    k_j = rest // ROWS % COLUMNS * BN + tl.arange(0, BN)
    part = rest // (ROWS * COLUMNS)
    m_cell = (q_j < N)[:, None] & (k_j < N)[None, :]
    o_cell = q_j[:, None] * N + k_j[None, :]
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    o_bias = BIAS(head, 0, q_j[:, None], 0, k_j[None, :], 0, P, table)
    b_bias = tl.load(p_bias + o_bias, mask=m_cell, other=MASKED).to(tl.float32) * logit_base(SPLIT)
    b_sum = tl.zeros([BM, BN], tl.float32)
    unit = scale * logit_base(SPLIT)
    for w in range(part, windows, slices):
        i0, j0, n_i, n_j, g = LOCATE(w % tiles, height, width, a_y, a_x, 1, BM, P)
        b = (w // tiles).to(tl.int64)
        y, x = PLACE(0, q_j, g, P)
        ky, kx = PLACE(0, k_j, g, P)
        own_y, own_x = OWN(0, q_j, g, P)
        q_part = PART(0, q_j, g, P)
        k_part = PART(0, k_j, g, P)
        m_q = (q_j < N) & (q_part >= 0)
        m_k = (k_j < N) & (k_part >= 0)
        o_image = (b * heads + head) * height * width
        o_row = y * width + x
        b_q = load_rows(
            p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, own_y, own_x, m_q, D, BD, UPCAST
        )
        b_k = load_rows(p_k + (b * k_b + head * k_h) * ALIGN, k_y, k_x, ALIGN, ky, kx, m_k, D, BD, UPCAST)
        b_v = load_rows(p_v + (b * v_b + head * v_h) * ALIGN, v_y, v_x, ALIGN, ky, kx, m_k, DV, BDV, UPCAST)
        b_g = load_rows(p_grad + b * height * o_y * UNIT + head * DV, o_y, o_x, UNIT, y, x, m_q, DV, BDV, UPCAST)
        b_lse, b_norm = load_lse(lse_of(p_lse, o_image, SPLIT), o_row, m_q, SPLIT)
        b_delta = tl.load(p_delta + o_image + o_row, mask=m_q, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_bias
        b_s = tl.where(q_part[:, None] == k_part[None, :], b_s, MASKED)
        b_p = probabilities(b_s, LOG2E if SPLIT else 1.0, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        b_sum += b_p * (b_dp - b_delta[:, None])

    tl.store(p_partial + (part.to(tl.int64) * heads + head) * (N * N) + o_cell, b_sum, mask=m_cell)
