"""The Triton kernels of injective linear attention: sums over tokens, and what every token makes of them.

A program owns a slice of the tokens of one head of one image and walks it in tiles of T. What tokens have in common is
small: S = sum of x^T y [D, DV], and the sums of x and of y, float32 one behind the other, first of keys and values
(``p_sums``), then of queries and gradients (``p_grads``). README.md has the maths; there are no atomics.
"""

import triton
import triton.language as tl

from .._blocks import load_rows, store_rows

FORWARD, QUERIES, KEYS, VALUES = (tl.constexpr(n) for n in range(4))  # what a factor makes: out, dq, dk or dv


@triton.jit
def _place(tokens, heads, slices, length):
    """Head, slice and image of this program, and its tokens from lo to hi."""
    pid = tl.program_id(0)
    part = pid // heads % slices
    lo = part * length
    return pid % heads, part, (pid // (heads * slices)).to(tl.int64), lo, tl.minimum(lo + length, tokens)


@triton.jit
def _factor(
    p_sums, p_grads, tokens, unit, KIND: tl.constexpr, R: tl.constexpr, NR: tl.constexpr, BR: tl.constexpr,
    C: tl.constexpr, NC: tl.constexpr, BC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, TYPE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """What rows are multiplied with: a block [BR, BC] from row R and column C on, in the rows' dtype, and its size.

    16-bit blocks are scaled to a largest entry of 1: their size would be lost below float16's smallest number, or above
    its largest. Third, minus the product of the rows' mean with the block [BC], for rows that are to be centred.
    """
    r = tl.arange(0, BR)
    c = tl.arange(0, BC)
    m_r = r < NR
    m_c = c < NC
    if (KIND == FORWARD) | (KIND == VALUES):  # rows are q's or k's channels
        cell = (R + r)[:, None] * DV + (C + c)[None, :]
        o_r = D * DV + R + r
        o_c = D * DV + D + C + c
    else:
        cell = (C + c)[None, :] * DV + (R + r)[:, None]
        o_r = D * DV + D + R + r
        o_c = D * DV + C + c
    m_cell = m_r[:, None] & m_c[None, :]
    b_r = tl.load(p_sums + o_r, mask=m_r, other=0.0)
    if (KIND == FORWARD) | (KIND == QUERIES):
        b_c = tl.load(p_sums + o_c, mask=m_c, other=0.0)
        b_m = tl.load(p_sums + cell, mask=m_cell, other=0.0) - b_r[:, None] * (b_c / tokens)[None, :]
    else:
        b_m = tl.load(p_grads + cell, mask=m_cell, other=0.0)
    b_m *= unit
    size = 1.0
    if tl.float32 != TYPE:
        size = tl.max(tl.max(tl.abs(b_m), 1), 0)
        size = tl.where(size > 0, size, 1.0)
        b_m = (b_m / size).to(TYPE)
        if UPCAST:
            b_m = b_m.to(tl.float32)
    b_shift = -tl.sum(b_m.to(tl.float32) * (b_r / tokens)[:, None], 0) * size
    return b_m, size, b_shift


@triton.jit
def _neighbour(p, stride, UNIT: tl.constexpr, t, ok, before, height, width, DY: tl.constexpr, DX: tl.constexpr,
               D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """The rows of the tokens (DY, DX) away from tokens t, zero outside of the map that begins at token ``before``."""
    y = (t - before) // width
    x = t - before - y * width
    ok = ok & (t >= before) & (y + DY >= 0) & (y + DY < height) & (x + DX >= 0) & (x + DX < width)
    return load_rows(p, stride, 0, UNIT, t + DY * width + DX, t, ok, D, BD, UPCAST).to(tl.float32)


@triton.jit
def collect(
    p_x, p_y, p_sums, p_out, p_partial,
    x_b, x_n, x_h, y_b, y_n, y_h, o_b, o_n, o_h, tokens, heads, slices, length, scale,
    QUERY: tl.constexpr, X: tl.constexpr, NX: tl.constexpr, BX: tl.constexpr, Y: tl.constexpr, NY: tl.constexpr,
    BY: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """partial[image, head, slice] = sums of x^T y, x and y over the slice, of channels X.. and Y.. of them.

    With QUERY x and y are the queries and the gradient, and their dq is written in passing.
    """
    head, part, b, lo, hi = _place(tokens, heads, slices, length)
    p_x += (b * x_b + head * x_h) * ALIGN + X
    p_y += (b * y_b + head * y_h) * ALIGN + Y
    p_sums += (b * heads + head) * (D * DV + D + DV)
    p_out += (b * o_b + head * o_h) * ALIGN
    b_sum = tl.zeros([BX, BY], tl.float32)
    b_xs = tl.zeros([T, BX], tl.float32)
    b_ys = tl.zeros([T, BY], tl.float32)
    if QUERY:
        b_m, size, _ = _factor(p_sums, p_sums, tokens, scale / tokens, QUERIES, 0, NY, BY, 0, NX, BX, D, DV,
                               p_x.dtype.element_ty, UPCAST)  # fmt: skip
    for t0 in range(lo, hi, T):
        t = t0 + tl.arange(0, T)
        ok = t < hi
        b_x = load_rows(p_x, x_n, 0, ALIGN, t, t, ok, NX, BX, UPCAST)
        b_y = load_rows(p_y, y_n, 0, ALIGN, t, t, ok, NY, BY, UPCAST)
        b_sum = tl.dot(tl.trans(b_x), b_y, b_sum, input_precision=PRECISION)
        b_ys += b_y.to(tl.float32)
        if QUERY:
            b_dq = tl.dot(b_y, b_m, input_precision=PRECISION) * size
            store_rows(p_out, o_n, 0, ALIGN, t, t, ok, b_dq, NX, BX)
        else:
            b_xs += b_x.to(tl.float32)

    p_partial += ((b * heads + head) * slices + part) * (D * DV + D + DV)
    o_x = tl.arange(0, BX)
    o_y = tl.arange(0, BY)
    cell = (X + o_x)[:, None] * DV + (Y + o_y)[None, :]
    tl.store(p_partial + cell, b_sum, mask=(o_x < NX)[:, None] & (o_y < NY)[None, :])
    tl.store(p_partial + D * DV + X + o_x, tl.sum(b_xs, 0), mask=o_x < NX)
    tl.store(p_partial + D * DV + D + Y + o_y, tl.sum(b_ys, 0), mask=o_y < NY)


@triton.jit
def apply(
    p_x, p_near, p_filters, p_sums, p_grads, p_out,
    x_b, x_n, x_h, n_b, n_n, n_h, o_b, o_n, o_h, tokens, heads, slices, length, before, height, width, scale,
    KIND: tl.constexpr, C: tl.constexpr, NC: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr,
    RESIDUAL: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out = x factor + what all tokens share (+ the neighbours through the filters): channels C.. of out, dq, dk or dv.

    x has ROWS channels, taken BR at a time. For dv the neighbours are those that the token is a neighbour of.
    """
    head, _, b, lo, hi = _place(tokens, heads, slices, length)
    p_x += (b * x_b + head * x_h) * ALIGN
    p_near += (b * n_b + head * n_h) * ALIGN + C
    p_out += (b * o_b + head * o_h) * ALIGN + C
    p_sums += (b * heads + head) * (D * DV + D + DV)
    p_grads += (b * heads + head) * (D * DV + D + DV)
    o_c = tl.arange(0, BC)
    b_all = tl.zeros([BC], tl.float32)
    if KIND == FORWARD:
        b_all += tl.load(p_sums + D * DV + D + C + o_c, mask=o_c < NC, other=0.0) / tokens
    if KIND == VALUES:
        b_all += tl.load(p_grads + D * DV + D + C + o_c, mask=o_c < NC, other=0.0) / tokens
    BLOCKS: tl.constexpr = (ROWS + BR - 1) // BR
    WAY: tl.constexpr = -1 if KIND == VALUES else 1
    unit = scale / tokens
    TYPE: tl.constexpr = p_x.dtype.element_ty
    if BLOCKS == 1:
        b_m, size, b_shift = _factor(p_sums, p_grads, tokens, unit, KIND, 0, ROWS, BR, C, NC, BC, D, DV, TYPE, UPCAST)
        if (KIND == KEYS) | (KIND == VALUES):
            b_all += b_shift
    p_filters += (b * heads + head) * (DV * 9) + C
    for t0 in range(lo, hi, T):
        t = t0 + tl.arange(0, T)
        ok = t < hi
        b_out = tl.zeros([T, BC], tl.float32) + b_all[None, :]
        if BLOCKS == 1:
            b_x = load_rows(p_x, x_n, 0, ALIGN, t, t, ok, ROWS, BR, UPCAST)
            b_out += tl.dot(b_x, b_m, input_precision=PRECISION) * size
        else:  # wide heads: a factor is too large to be kept
            for i in tl.static_range(BLOCKS):
                b_m, size, b_shift = _factor(
                    p_sums, p_grads, tokens, unit, KIND, i * BR, ROWS - i * BR, BR, C, NC, BC, D, DV, TYPE, UPCAST
                )
                b_x = load_rows(p_x + i * BR, x_n, 0, ALIGN, t, t, ok, ROWS - i * BR, BR, UPCAST)
                b_out += tl.dot(b_x, b_m, input_precision=PRECISION) * size
                if (KIND == KEYS) | (KIND == VALUES):
                    b_out += b_shift[None, :]
        if RESIDUAL:
            for i in tl.static_range(3):
                for j in tl.static_range(3):
                    b_n = _neighbour(
                        p_near, n_n, ALIGN, t, ok, before, height, width, WAY * (i - 1), WAY * (j - 1), NC, BC, UPCAST
                    )
                    b_w = tl.load(p_filters + (3 * i + j) * DV + o_c, mask=o_c < NC, other=0.0)
                    b_out += b_n * b_w[None, :]
        store_rows(p_out, o_n, 0, ALIGN, t, t, ok, b_out, NC, BC)


@triton.jit
def backward_keys(
    p_k, p_v, p_g, p_filters, p_sums, p_grads, p_dk, p_dv, p_partial,
    k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    tokens, heads, slices, length, before, height, width, scale,
    BD: tl.constexpr, BDV: tl.constexpr, RESIDUAL: tl.constexpr, GRAD: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """dk, dv and, with GRAD, partial[image, head, slice] = the filters' gradient [9, DV], of narrow heads."""
    head, part, b, lo, hi = _place(tokens, heads, slices, length)
    p_k += (b * k_b + head * k_h) * ALIGN
    p_v += (b * v_b + head * v_h) * ALIGN
    p_g += (b * g_b + head * g_h) * ALIGN
    p_dk += (b * dk_b + head * dk_h) * ALIGN
    p_dv += (b * dv_b + head * dv_h) * ALIGN
    p_sums += (b * heads + head) * (D * DV + D + DV)
    p_grads += (b * heads + head) * (D * DV + D + DV)
    o_v = tl.arange(0, BDV)
    unit = scale / tokens
    TYPE: tl.constexpr = p_k.dtype.element_ty
    b_km, k_size, b_kshift = _factor(p_sums, p_grads, tokens, unit, KEYS, 0, DV, BDV, 0, D, BD, D, DV, TYPE, UPCAST)
    b_vm, v_size, b_vshift = _factor(p_sums, p_grads, tokens, unit, VALUES, 0, D, BD, 0, DV, BDV, D, DV, TYPE, UPCAST)
    b_vshift += tl.load(p_grads + D * DV + D + o_v, mask=o_v < DV, other=0.0) / tokens
    p_filters += (b * heads + head) * (DV * 9)
    if GRAD:
        b_0 = tl.zeros([T, BDV], tl.float32)
        b_1, b_2, b_3, b_4, b_5, b_6, b_7, b_8 = b_0, b_0, b_0, b_0, b_0, b_0, b_0, b_0
    for t0 in range(lo, hi, T):
        t = t0 + tl.arange(0, T)
        ok = t < hi
        b_k = load_rows(p_k, k_n, 0, ALIGN, t, t, ok, D, BD, UPCAST)
        b_v = load_rows(p_v, v_n, 0, ALIGN, t, t, ok, DV, BDV, UPCAST)
        b_dk = tl.dot(b_v, b_km, input_precision=PRECISION) * k_size + b_kshift[None, :]
        store_rows(p_dk, dk_n, 0, ALIGN, t, t, ok, b_dk, D, BD)
        b_dv = tl.dot(b_k, b_vm, input_precision=PRECISION) * v_size + b_vshift[None, :]
        if RESIDUAL:
            b_v = b_v.to(tl.float32)
            for i in tl.static_range(3):
                for j in tl.static_range(3):
                    b_n = _neighbour(p_g, g_n, ALIGN, t, ok, before, height, width, 1 - i, 1 - j, DV, BDV, UPCAST)
                    b_w = tl.load(p_filters + (3 * i + j) * DV + o_v, mask=o_v < DV, other=0.0)
                    b_dv += b_n * b_w[None, :]
                    if GRAD:
                        b_n *= b_v
                        if i == 0:
                            if j == 0:
                                b_0 += b_n
                            elif j == 1:
                                b_1 += b_n
                            else:
                                b_2 += b_n
                        elif i == 1:
                            if j == 0:
                                b_3 += b_n
                            elif j == 1:
                                b_4 += b_n
                            else:
                                b_5 += b_n
                        else:
                            if j == 0:
                                b_6 += b_n
                            elif j == 1:
                                b_7 += b_n
                            else:
                                b_8 += b_n
        store_rows(p_dv, dv_n, 0, ALIGN, t, t, ok, b_dv, DV, BDV)

    if GRAD:
        p_partial += ((b * heads + head) * slices + part) * (DV * 9) + o_v
        sums = (b_0, b_1, b_2, b_3, b_4, b_5, b_6, b_7, b_8)
        for n in tl.static_range(9):
            tl.store(p_partial + n * DV, tl.sum(sums[n], 0), mask=o_v < DV)


@triton.jit
def backward_filters(
    p_v, p_g, p_partial, v_b, v_n, v_h, g_b, g_n, g_h, tokens, heads, slices, length, before, height, width,
    C: tl.constexpr, NC: tl.constexpr, BC: tl.constexpr, DV: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """partial[image, head, slice] = the gradient of the filters of channels C.., of wide heads, tap by tap."""
    head, part, b, lo, hi = _place(tokens, heads, slices, length)
    p_v += (b * v_b + head * v_h) * ALIGN + C
    p_g += (b * g_b + head * g_h) * ALIGN + C
    o_c = tl.arange(0, BC)
    p_partial += ((b * heads + head) * slices + part) * (DV * 9) + C + o_c
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            b_sum = tl.zeros([T, BC], tl.float32)
            for t0 in range(lo, hi, T):
                t = t0 + tl.arange(0, T)
                ok = t < hi
                b_v = load_rows(p_v, v_n, 0, ALIGN, t, t, ok, NC, BC, UPCAST).to(tl.float32)
                b_sum += b_v * _neighbour(
                    p_g, g_n, ALIGN, t, ok, before, height, width, 1 - i, 1 - j, NC, BC, UPCAST
                )
            tl.store(p_partial + (3 * i + j) * DV, tl.sum(b_sum, 0), mask=o_c < NC)
