"""Channel attention in Triton: one forward and one backward kernel, each in two passes over an image's tokens.

The first pass adds up a D x D matrix over tokens, the second one multiplies tokens by what follows from it. Both fit
into one program where it walks all tokens of an image's group (``FIRST`` and ``SECOND``): nothing is read twice.
Larger maps are cut into slices: a launch of the first pass leaves one partial sum a slice, and every program of the
second adds them up in the same order. Strides count ALIGN elements; every sum is float32; no atomics.
"""

import triton
import triton.language as tl

MASKED = tl.constexpr(float("-inf"))


@triton.jit
def _program(groups, slices, size, tokens):
    """(image, group, slice, its first token, the one behind its last). Groups vary fastest: they share cache lines."""
    pid = tl.program_id(0)
    rest = pid // groups
    piece = rest % slices
    start = piece * size
    return (rest // slices).to(tl.int64), pid % groups, piece, start, tl.minimum(start + size, tokens)


@triton.jit
def _rows(p, stride, n, stop, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Pointers to and validity of the D channels of tokens n to n + BN: two [BN, BD] blocks.

    What differs from token to token is the same for every n, so that it is worked out once.
    """
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    mask = (n + o_n < stop)[:, None]
    if BD != D:
        mask = mask & (o_d < D)[None, :]
    return p + tl.cast(n, tl.int64) * stride + (o_n.to(tl.int64)[:, None] * stride + o_d[None, :]), mask


@triton.jit
def _load(p, stride, n, stop, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):
    ptr, mask = _rows(p, stride, n, stop, BN, D, BD)
    b = tl.load(ptr, mask=mask, other=0.0)
    if UPCAST:  # Triton's interpreter multiplies bfloat16 blocks wrongly
        b = b.to(tl.float32)
    return b


@triton.jit
def _load_turned(p, stride, n, stop, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):
    """[BD, BN]: turned by its pointers, since a block turned by ``tl.trans`` would not be copied asynchronously."""
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    mask = (n + o_n < stop)[None, :]
    if BD != D:
        mask = mask & (o_d < D)[:, None]
    p += tl.cast(n, tl.int64) * stride
    b = tl.load(p + (o_n.to(tl.int64)[None, :] * stride + o_d[:, None]), mask=mask, other=0.0)
    if UPCAST:
        b = b.to(tl.float32)
    return b


@triton.jit
def _store(p, stride, n, stop, b, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    ptr, mask = _rows(p, stride, n, stop, BN, D, BD)
    tl.store(ptr, b.to(p.dtype.element_ty), mask=mask)


@triton.jit
def _square(D: tl.constexpr, BD: tl.constexpr):
    """Offsets in and validity of a D x D matrix: two [BD, BD] blocks."""
    o = tl.arange(0, BD)
    return o[:, None] * D + o[None, :], (o < D)[:, None] & (o < D)[None, :]


@triton.jit
def _add_up(p_partial, first, parts, D: tl.constexpr, BD: tl.constexpr):
    """The sum of ``parts`` partial sums from the first on, [BD, BD]."""
    o, mask = _square(D, BD)
    b_sum = tl.zeros([BD, BD], tl.float32)
    for part in range(parts):
        b_sum += tl.load(p_partial + (first + part) * (D * D) + o, mask=mask, other=0.0)
    return b_sum


@triton.jit
def channel_forward(
    p_q, p_k, p_v, p_out, p_map, p_partial,
    q_b, q_n, q_g, k_b, k_n, k_g, v_b, v_n, v_g, tokens, groups, slices, size, parts, scale,
    FIRST: tl.constexpr, SECOND: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """map = softmax(scale k^T v) and out = q map^T of a slice of tokens of one image's group; out is contiguous."""
    b, g, piece, start, stop = _program(groups, slices, size, tokens)
    o_map, m_map = _square(D, BD)
    if FIRST:
        p_k += (b * k_b + g * k_g) * ALIGN
        p_v += (b * v_b + g * v_g) * ALIGN
        b_s = tl.zeros([BD, BD], tl.float32)
        for n in range(start, stop, BN):
            b_kt = _load_turned(p_k, k_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_v = _load(p_v, v_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_s = tl.dot(b_kt, b_v, b_s, input_precision=PRECISION)  # [k's channels, v's channels]
    else:
        b_s = _add_up(p_partial, (b * groups + g) * parts, parts, D, BD)
    if SECOND:
        b_s = tl.where((tl.arange(0, BD) < D)[None, :], b_s * scale, MASKED)
        b_a = tl.exp(b_s - tl.max(b_s, 1)[:, None])
        b_a = b_a / tl.sum(b_a, 1)[:, None]
        if piece == 0:
            tl.store(p_map + (b * groups + g) * (D * D) + o_map, b_a, mask=m_map)
        p_q += (b * q_b + g * q_g) * ALIGN
        p_out += (b * tokens * groups + g) * D
        b_at = tl.trans(b_a)
        for n in range(start, stop, BN):
            b_q = _load(p_q, q_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_o = tl.dot(b_q, b_at.to(b_q.dtype), input_precision=PRECISION)
            _store(p_out, groups * D, n, stop, b_o, BN, D, BD)
    else:
        tl.store(p_partial + ((b * groups + g) * slices + piece) * (D * D) + o_map, b_s, mask=m_map)


@triton.jit
def channel_backward(
    p_q, p_k, p_v, p_grad, p_map, p_dq, p_dk, p_dv, p_partial,
    q_b, q_n, q_g, k_b, k_n, k_g, v_b, v_n, v_g, c_b, c_n, c_g, d_b, d_n, d_g, e_b, e_n, e_g,
    tokens, groups, slices, size, parts, scale,
    FIRST: tl.constexpr, SECOND: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dq = dout map and the map's gradient; dk = scale v dS^T and dv = scale k dS of a slice. dout is contiguous."""
    b, g, piece, start, stop = _program(groups, slices, size, tokens)
    o_map, m_map = _square(D, BD)
    b_a = tl.load(p_map + (b * groups + g) * (D * D) + o_map, mask=m_map, other=0.0)
    if FIRST:
        p_grad += (b * tokens * groups + g) * D
        p_q += (b * q_b + g * q_g) * ALIGN
        p_dq += (b * c_b + g * c_g) * ALIGN
        b_da = tl.zeros([BD, BD], tl.float32)
        for n in range(start, stop, BN):
            b_g = _load(p_grad, groups * D, n, stop, BN, D, BD, UPCAST)
            b_q = _load(p_q, q_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_da = tl.dot(tl.trans(b_g), b_q, b_da, input_precision=PRECISION)  # [out's channels, q's channels]
            b_dq = tl.dot(b_g, b_a.to(b_g.dtype), input_precision=PRECISION)
            _store(p_dq, c_n * ALIGN, n, stop, b_dq, BN, D, BD)
    else:
        b_da = _add_up(p_partial, (b * groups + g) * parts, parts, D, BD)
    if SECOND:
        b_ds = b_a * (b_da - tl.sum(b_a * b_da, 1)[:, None])
        b_dst = tl.trans(b_ds)
        p_k += (b * k_b + g * k_g) * ALIGN
        p_v += (b * v_b + g * v_g) * ALIGN
        p_dk += (b * d_b + g * d_g) * ALIGN
        p_dv += (b * e_b + g * e_g) * ALIGN
        for n in range(start, stop, BN):
            b_k = _load(p_k, k_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_v = _load(p_v, v_n * ALIGN, n, stop, BN, D, BD, UPCAST)
            b_dk = tl.dot(b_v, b_dst.to(b_v.dtype), input_precision=PRECISION) * scale
            b_dv = tl.dot(b_k, b_ds.to(b_k.dtype), input_precision=PRECISION) * scale
            _store(p_dk, d_n * ALIGN, n, stop, b_dk, BN, D, BD)
            _store(p_dv, e_n * ALIGN, n, stop, b_dv, BN, D, BD)
    else:
        tl.store(p_partial + ((b * groups + g) * slices + piece) * (D * D) + o_map, b_da, mask=m_map)
