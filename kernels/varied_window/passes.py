"""The kernels of varied windows: attention of windows to their samples, and the samples' gradients back to the map.

``P`` is (window rows, window columns), ``T`` how many positions a tile has, a power of two that holds a window. Queries
and samples of a window are lines in reading order. ``p_sampling`` holds four contiguous float32 numbers a window and
head, [windows of the batch, heads, 4]: displacement and additional stretch, rows before columns.

The forward and the first backward pass are persistent: program (slice, head) walks its share of all windows, so that
the bias is a block of registers, loaded once. Samples are read where they are needed, four positions each, and never
written. Their gradients are, [windows, heads, positions, D]; a last pass collects them: a program owns a window's own
positions on the map and goes through the windows of the image that may have a sample near them, in order. How much of a
sample falls to a position is a product of two hats, so what a window gives is one product of matrices.
"""

import triton
import triton.language as tl

from .._blocks import (
    LOG2E,
    MASKED,
    exponentials,
    gather,
    load_lse,
    load_rows,
    logit_base,
    over_sum,
    probabilities,
    store_lse,
    store_rows,
)


@triton.jit
def _place(number, window, shift, growth, SIZE: tl.constexpr):
    """Where along an axis the sample of this number in a window lies."""
    HALF: tl.constexpr = (SIZE - 1) / 2
    return (window * SIZE).to(tl.float32) + HALF + shift + (1.0 + growth) * (number.to(tl.float32) - HALF)


@triton.jit
def _between(place, n):
    """(position before a place, part of the way to the next); a place far outside of 0..n - 1 becomes a near one."""
    place = tl.maximum(place, -2.0, propagate_nan=tl.PropagateNan.ALL)
    place = tl.minimum(place, n.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    before = tl.floor(place)
    return before.to(tl.int32), place - before


@triton.jit
def _corner(p, s_y, s_x, UNIT: tl.constexpr, y, x, ok, height, width, D: tl.constexpr, BD: tl.constexpr,
            UPCAST: tl.constexpr):  # fmt: skip
    """Rows of the map at positions, zeros outside of it, in float32."""
    inside = ok & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return load_rows(p, s_y, s_x, UNIT, y, x, inside, D, BD, UPCAST).to(tl.float32)


@triton.jit
def _sample(p, s_y, s_x, UNIT: tl.constexpr, y, x, f_y, f_x, ok, height, width, D: tl.constexpr,
            BD: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Bilinear interpolation: a block [T, BD] in the map's type, as every pass sees it."""
    b = _corner(p, s_y, s_x, UNIT, y, x, ok, height, width, D, BD, UPCAST) * ((1 - f_y) * (1 - f_x))[:, None]
    b += _corner(p, s_y, s_x, UNIT, y, x + 1, ok, height, width, D, BD, UPCAST) * ((1 - f_y) * f_x)[:, None]
    b += _corner(p, s_y, s_x, UNIT, y + 1, x, ok, height, width, D, BD, UPCAST) * (f_y * (1 - f_x))[:, None]
    b += _corner(p, s_y, s_x, UNIT, y + 1, x + 1, ok, height, width, D, BD, UPCAST) * (f_y * f_x)[:, None]
    b = b.to(p.dtype.element_ty)
    if UPCAST:
        b = b.to(tl.float32)
    return b


@triton.jit
def _slopes(p, s_y, s_x, UNIT: tl.constexpr, y, x, f_y, f_x, ok, b_d, height, width, D: tl.constexpr, BD: tl.constexpr,
            UPCAST: tl.constexpr):  # fmt: skip
    """What the samples' gradient [T, BD] gives to their places: along rows, along columns."""
    b_00 = tl.sum(_corner(p, s_y, s_x, UNIT, y, x, ok, height, width, D, BD, UPCAST) * b_d, 1)
    b_01 = tl.sum(_corner(p, s_y, s_x, UNIT, y, x + 1, ok, height, width, D, BD, UPCAST) * b_d, 1)
    b_10 = tl.sum(_corner(p, s_y, s_x, UNIT, y + 1, x, ok, height, width, D, BD, UPCAST) * b_d, 1)
    b_11 = tl.sum(_corner(p, s_y, s_x, UNIT, y + 1, x + 1, ok, height, width, D, BD, UPCAST) * b_d, 1)
    return (b_10 - b_00) * (1 - f_x) + (b_11 - b_01) * f_x, (b_01 - b_00) * (1 - f_y) + (b_11 - b_10) * f_y


@triton.jit
def _pair_bias(p_bias, table, head, j, ok, BIAS: tl.constexpr, P: tl.constexpr, HAS_BIAS: tl.constexpr,
               FTZ: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Bias in ``logit_base``, -inf for what is no sample, [T queries, T samples]."""
    b_bias = tl.where(ok[None, :] & (j >= 0)[:, None], 0.0, MASKED)
    if HAS_BIAS:
        offset = BIAS(head, 0, j[:, None], 0, j[None, :], 0, P, table)
        b_bias += gather(p_bias, offset, table, FTZ, False) * logit_base(SPLIT)
    return b_bias


@triton.jit
def _look(p_w, w_y, w_x, j, height, width, P: tl.constexpr):
    """The samples of a window of a head: positions before them and parts of the way, rows and columns."""
    y, f_y = _between(_place(j // P[1], w_y, tl.load(p_w), tl.load(p_w + 2), P[0]), height)
    x, f_x = _between(_place(j % P[1], w_x, tl.load(p_w + 1), tl.load(p_w + 3), P[1]), width)
    return y, x, f_y, f_x


@triton.jit
def varied_forward(
    p_q, p_k, p_v, p_sampling, p_bias, p_out, p_lse,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, columns, tiles, windows, scale, table,
    BIAS: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """out and lse of all windows of one head in this program's slice. Strides count ALIGN elements."""
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads
    slices = tl.num_programs(0) // heads
    j = tl.arange(0, T)
    ok = j < P[0] * P[1]
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    unit = scale * logit_base(SPLIT)
    b_bias = _pair_bias(p_bias, table, head, j, ok, BIAS, P, HAS_BIAS, FTZ, SPLIT)
    for w in range(first, windows, slices):
        b = (w // tiles).to(tl.int64)
        w_y = w % tiles // columns
        w_x = w % tiles % columns
        y = w_y * P[0] + j // P[1]
        x = w_x * P[1] + j % P[1]
        m_q = ok & (y < height) & (x < width)
        o_w = (b * tiles + w % tiles) * heads + head
        b_q = load_rows(p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, y, x, m_q, D, BD, UPCAST)
        p_kw = p_k + (b * k_b + head * k_h) * ALIGN
        p_vw = p_v + (b * v_b + head * v_h) * ALIGN
        s_y, s_x, f_y, f_x = _look(p_sampling + o_w * 4, w_y, w_x, j, height, width, P)
        b_k = _sample(p_kw, k_y, k_x, ALIGN, s_y, s_x, f_y, f_x, ok, height, width, D, BD, UPCAST)
        b_v = _sample(p_vw, v_y, v_x, ALIGN, s_y, s_x, f_y, f_x, ok, height, width, DV, BDV, UPCAST)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_bias
        b_m = tl.max(b_s, 1)
        b_p = exponentials(b_s, LOG2E if SPLIT else 1.0, b_m[:, None], SPLIT, FTZ)
        b_l = tl.sum(b_p, 1)
        b_o = over_sum(tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION), b_l, SPLIT, FTZ)
        store_rows(p_out + b * height * o_y * UNIT + head * DV, o_y, o_x, UNIT, y, x, m_q, b_o, DV, BDV)
        store_lse(p_lse, (b * heads + head) * height * width + (y * width + x), m_q, b_m, b_l, SPLIT, FTZ)


@triton.jit
def varied_backward(
    p_q, p_k, p_v, p_sampling, p_bias, p_grad, p_lse, p_dq, p_keys, p_values, p_dsampling, p_dbias,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, c_b, c_y, c_x, c_h,
    height, width, heads, columns, tiles, windows, scale, table,
    BIAS: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr, PLACE_GRAD: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """dq, the gradients of the samples ``p_keys``, ``p_values`` and of the places, of this program's slice.

    ``p_dbias``: one [T, T] sum of dS a program.
    """
    N: tl.constexpr = P[0] * P[1]
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads
    slices = tl.num_programs(0) // heads
    j = tl.arange(0, T)
    ok = j < N
    away_y = (j // P[1]).to(tl.float32) - (P[0] - 1) / 2
    away_x = (j % P[1]).to(tl.float32) - (P[1] - 1) / 2
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    unit = scale * logit_base(SPLIT)
    b_bias = _pair_bias(p_bias, table, head, j, ok, BIAS, P, HAS_BIAS, FTZ, SPLIT)
    b_dbias = tl.zeros([T, T], tl.float32)
    for w in range(first, windows, slices):
        b = (w // tiles).to(tl.int64)
        w_y = w % tiles // columns
        w_x = w % tiles % columns
        y = w_y * P[0] + j // P[1]
        x = w_x * P[1] + j % P[1]
        m_q = ok & (y < height) & (x < width)
        o_row = (b * heads + head) * height * width + (y * width + x)
        o_w = (b * tiles + w % tiles) * heads + head
        b_q = load_rows(p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, y, x, m_q, D, BD, UPCAST)
        b_g = load_rows(p_grad + b * height * o_y * UNIT + head * DV, o_y, o_x, UNIT, y, x, m_q, DV, BDV, UPCAST)
        b_lse, b_norm = load_lse(p_lse, o_row, m_q, SPLIT)
        p_kw = p_k + (b * k_b + head * k_h) * ALIGN
        p_vw = p_v + (b * v_b + head * v_h) * ALIGN
        s_y, s_x, f_y, f_x = _look(p_sampling + o_w * 4, w_y, w_x, j, height, width, P)
        b_k = _sample(p_kw, k_y, k_x, ALIGN, s_y, s_x, f_y, f_x, ok, height, width, D, BD, UPCAST)
        b_v = _sample(p_vw, v_y, v_x, ALIGN, s_y, s_x, f_y, f_x, ok, height, width, DV, BDV, UPCAST)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_bias
        b_p = probabilities(b_s, LOG2E if SPLIT else 1.0, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)  # [T, T]
        if SPLIT:  # the sum of dS over a row is exactly 0 only where that of p is 1
            b_p /= tl.where(m_q, tl.sum(b_p, 1), 1.0)[:, None]
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])
        if BIAS_GRAD:
            b_dbias += b_ds
        b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, input_precision=PRECISION)
        store_rows(p_values + o_w * (N * DV), 0, DV, 1, j, j, ok, b_dv, DV, BDV)
        if PLACE_GRAD:  # as soon as can be: registers are short
            v_rows, v_columns = _slopes(p_vw, v_y, v_x, ALIGN, s_y, s_x, f_y, f_x, ok, b_dv, height, width, DV,
                                        BDV, UPCAST)  # fmt: skip
        b_ds = b_ds.to(b_q.dtype)
        b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION) * scale
        store_rows(p_dq + (b * c_b + head * c_h) * ALIGN, c_y, c_x, ALIGN, y, x, m_q, b_dq, D, BD)
        b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PRECISION) * scale
        store_rows(p_keys + o_w * (N * D), 0, D, 1, j, j, ok, b_dk, D, BD)
        if PLACE_GRAD:
            k_rows, k_columns = _slopes(p_kw, k_y, k_x, ALIGN, s_y, s_x, f_y, f_x, ok, b_dk, height, width, D,
                                        BD, UPCAST)  # fmt: skip
            p_w = p_dsampling + o_w * 4
            tl.store(p_w, tl.sum(k_rows + v_rows, 0))
            tl.store(p_w + 1, tl.sum(k_columns + v_columns, 0))
            tl.store(p_w + 2, tl.sum((k_rows + v_rows) * away_y, 0))
            tl.store(p_w + 3, tl.sum((k_columns + v_columns) * away_x, 0))
    if BIAS_GRAD:
        p_dbias += tl.program_id(0).to(tl.int64) * (T * T)
        tl.store(p_dbias + j[:, None] * T + j[None, :], b_dbias)


@triton.jit
def _hat(distance):
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def _reaches(w, shift, growth, first, n, SIZE: tl.constexpr):
    """Whether samples of windows may lie next to the positions of the window that starts at ``first``."""
    a = _place(w * 0, w, shift, growth, SIZE)
    z = _place(w * 0 + (SIZE - 1), w, shift, growth, SIZE)
    last = tl.minimum(first + SIZE, n) - 1
    return (tl.maximum(a, z) > (first - 1).to(tl.float32)) & (tl.minimum(a, z) < (last + 1).to(tl.float32))


@triton.jit
def varied_collect(
    p_sampling, p_keys, p_values, p_dk, p_dv,
    d_b, d_y, d_x, d_h, e_b, e_y, e_x, e_h,
    height, width, heads, columns, tiles,
    P: tl.constexpr, T: tl.constexpr, CHUNK: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dk and dv of a window's own positions, of all windows of the image, in order, that have a sample next to one."""
    N: tl.constexpr = P[0] * P[1]
    head = tl.program_id(0) % heads
    rest = tl.program_id(0) // heads
    t = rest % tiles
    b = (rest // tiles).to(tl.int64)
    top = t // columns * P[0]
    left = t % columns * P[1]
    j = tl.arange(0, T)
    y = top + j // P[1]
    x = left + j % P[1]
    ok = (j < N) & (y < height) & (x < width)
    b_dk = tl.zeros([T, BD], tl.float32)
    b_dv = tl.zeros([T, BDV], tl.float32)
    for start in range(0, tiles, CHUNK):
        o_w = start + tl.arange(0, CHUNK)
        m_w = o_w < tiles
        p_w = p_sampling + ((b * tiles + o_w) * heads + head) * 4
        near = m_w & _reaches(o_w // columns, tl.load(p_w, mask=m_w, other=0.0),
                              tl.load(p_w + 2, mask=m_w, other=0.0), top, height, P[0])  # fmt: skip
        near = near & _reaches(o_w % columns, tl.load(p_w + 1, mask=m_w, other=0.0),
                               tl.load(p_w + 3, mask=m_w, other=0.0), left, width, P[1])  # fmt: skip
        w = tl.min(tl.where(near, o_w, tiles), 0)
        while w < tiles:
            o_s = (b * tiles + w) * heads + head
            p_s = p_sampling + o_s * 4
            s_y = _place(j // P[1], w // columns, tl.load(p_s), tl.load(p_s + 2), P[0])
            s_x = _place(j % P[1], w % columns, tl.load(p_s + 1), tl.load(p_s + 3), P[1])
            b_part = _hat(s_y[None, :] - y.to(tl.float32)[:, None]) * _hat(s_x[None, :] - x.to(tl.float32)[:, None])
            b_keys = load_rows(p_keys + o_s * (N * D), 0, D, 1, j, j, j < N, D, BD, UPCAST)
            b_values = load_rows(p_values + o_s * (N * DV), 0, DV, 1, j, j, j < N, DV, BDV, UPCAST)
            b_dk = tl.dot(b_part.to(b_keys.dtype), b_keys, b_dk, input_precision=PRECISION)
            b_dv = tl.dot(b_part.to(b_values.dtype), b_values, b_dv, input_precision=PRECISION)
            w = tl.min(tl.where(near & (o_w > w), o_w, tiles), 0)
    store_rows(p_dk + (b * d_b + head * d_h) * ALIGN, d_y, d_x, ALIGN, y, x, ok, b_dk, D, BD)
    store_rows(p_dv + (b * e_b + head * e_h) * ALIGN, e_y, e_x, ALIGN, y, x, ok, b_dv, DV, BDV)
