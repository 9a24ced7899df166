"""Kernels of the depthwise convolution.

A program of :func:`convolve` owns TH x TW positions and BC channels, and keeps their TH sums in registers: for each
column of the filter it walks down the rows of the input, and what it reads of one serves all outputs that the row
touches. :func:`filter_gradients` keeps a sum for every tap and walks over its share of the batch's tiles. No atomics:
every order is fixed.
"""

import triton
import triton.language as tl


@triton.jit
def _plus(sums, b, I: tl.constexpr):
    return sums[:I] + (sums[I] + b,) + sums[I + 1:]


@triton.jit
def _tile(w, tiles_y, tiles_x, TH: tl.constexpr, TW: tl.constexpr):
    """(image, first row, first column) of a tile by its number."""
    rest = w // tiles_x
    return (rest // tiles_y).to(tl.int64), rest % tiles_y * TH, w % tiles_x * TW


@triton.jit
def _row(p, row, columns, s_y, s_x, o_c, m_c, height, width):
    """Channels [columns, BC] of positions of a row as float32; zeros off the map."""
    # one unsigned comparison a position: rows off the map have no columns
    here = tl.where((row >= 0) & (row < height), width, 0).to(tl.uint32, bitcast=True)
    ok = columns.to(tl.uint32, bitcast=True) < here
    p += row.to(tl.int64) * s_y
    b = tl.load(p + (columns[:, None] * s_x + o_c[None, :]), mask=ok[:, None] & m_c[None, :], other=0.0)
    return b.to(tl.float32)


@triton.jit
def convolve(
    p_x, p_w, p_bias, p_out, x_b, x_y, x_x, o_b, o_y, o_x, height, width, channels, tiles_y, tiles_x, blocks,
    K: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, ALIGN: tl.constexpr, FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """out = x * w (+ bias) (+ x); w [K * K, channels]. FLIP: with the filter turned around, as gradients of x need.

    Strides and channels count ALIGN elements.
    """
    x_y, x_x, o_y, o_x, channels = x_y * ALIGN, x_x * ALIGN, o_y * ALIGN, o_x * ALIGN, channels * ALIGN
    block = tl.program_id(0) % blocks
    b, y0, x0 = _tile(tl.program_id(0) // blocks, tiles_y, tiles_x, TH, TW)
    p_x += b * x_b * ALIGN
    p_out += b * o_b * ALIGN
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < channels
    columns = x0 + tl.arange(0, TW)
    sums = (tl.zeros([TW, BC], tl.float32),) * TH
    for dx in range(K):
        taps = ()
        for dy in tl.static_range(K):
            tap = dy * K + dx
            if FLIP:
                tap = K * K - 1 - tap
            taps = taps + (tl.load(p_w + tap * channels + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :],)
        for i in tl.static_range(TH + K - 1):
            b_x = _row(p_x, y0 + i - K // 2, columns + dx - K // 2, x_y, x_x, o_c, m_c, height, width)
            for r in tl.static_range(TH):
                if i >= r and i - r < K:
                    sums = _plus(sums, b_x * taps[i - r], r)
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    for r in tl.static_range(TH):
        b_out = sums[r]
        if HAS_BIAS:
            b_out += b_bias
        if RESIDUAL:
            b_out += _row(p_x, y0 + r, columns, x_y, x_x, o_c, m_c, height, width)
        ok = columns < tl.where(y0 + r < height, width, 0)
        p_row = p_out + (y0 + r).to(tl.int64) * o_y + (columns[:, None] * o_x + o_c[None, :])
        tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=ok[:, None] & m_c[None, :])


@triton.jit
def filter_gradients(
    p_x, p_grad, p_partial, x_b, x_y, x_x, g_b, g_y, g_x, batch, height, width, channels, tiles_y, tiles_x, blocks,
    slices, K: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """partial[slice, tap, channel] of the filters' gradient; the last tap of K * K + 1 is the bias's."""
    x_y, x_x, g_y, g_x, channels = x_y * ALIGN, x_x * ALIGN, g_y * ALIGN, g_x * ALIGN, channels * ALIGN
    block = tl.program_id(0) % blocks
    part = tl.program_id(0) // blocks
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < channels
    o_t = tl.arange(0, TW)
    sums = (tl.zeros([TW, BC], tl.float32),) * (K * K + 1)
    work = batch * tiles_y * tiles_x
    share = tl.cdiv(work, slices)
    for w in range(part * share, tl.minimum((part + 1) * share, work)):
        b, y0, x0 = _tile(w, tiles_y, tiles_x, TH, TW)
        columns = x0 + o_t
        rows = ()
        for r in tl.static_range(TH):
            b_g = _row(p_grad + b * g_b * ALIGN, y0 + r, columns, g_y, g_x, o_c, m_c, height, width)
            sums = _plus(sums, b_g, K * K)
            rows = rows + (b_g,)
        for i in tl.static_range(TH + K - 1):
            for dx in tl.static_range(K):
                b_x = _row(p_x + b * x_b * ALIGN, y0 + i - K // 2, columns + (dx - K // 2), x_y, x_x, o_c, m_c, height,
                           width)  # fmt: skip
                for r in tl.static_range(TH):
                    if i >= r and i - r < K:
                        sums = _plus(sums, b_x * rows[r], (i - r) * K + dx)
    p_partial += part.to(tl.int64) * (K * K + 1) * channels + o_c
    for tap in tl.static_range(K * K + 1):
        tl.store(p_partial + tap * channels, tl.sum(sums[tap], 0), mask=m_c)
