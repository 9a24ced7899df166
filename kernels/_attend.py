"""The tile engine under every softmax attention of this package: one forward, one dq and one dk/dv Triton kernel.

A program owns one tile of ``TH x TW`` positions of one head of one image (queries in :func:`attend_forward` and in
:mod:`._attend_queries`, which has the dq kernel, keys in :func:`attend_backward_kv`) and walks the box of positions
that the tile may see in chunks of ``CH x CW``. What an op adds are index maps, ``triton.jit`` functions passed as
constexpr arguments and inlined by the compiler. ``g`` is whatever tuple LOCATE returns, ``P`` the op's constexpr
parameters:

``LOCATE(t, height, width, a_y, a_x, TH, TW, P) -> (i0, j0, n_i, n_j, g)``
    the tile's first position and the length of the space it lives in (the map, a dilation group, a window);
``PLACE(i, j, g, P) -> (y, x)``
    the place in the map of a position of that space; ``OWN`` the place of its query in q, which is ``PLACE`` unless q
    is a map of its own that all spaces share;
``SPAN(i0, j0, n_i, n_j, g, TH, TW, P) -> (i_lo, i_hi, j_lo, j_hi)``
    the half-open box of keys that the tile's queries see; ``SPAN_T`` the box of queries that see the tile's keys;
``MASK(q_i, q_j, k_i, k_j, n_i, n_j, P) -> bool``
    which pairs attend, broadcasting its arguments;
``BIAS(head, q_i, q_j, k_i, k_j, g, P, table) -> offset``
    where a pair's additive bias lies among the ``table`` numbers at ``p_bias``; any value for other pairs.

Where these are not enough an op may bring more (None otherwise):

``LIST(p_bias, table, b, g, P) -> g``
    more of ``g``, read from memory once a tile: where image b's list of what the tile sees begins, and how long it is.
    Boxes are then rows of single listed things, chunks (1 x CW) lie in one, and the i of places in the box is a scalar;
``KEY(i, j, g, P) -> (y, x)``
    the place of a key, where queries and keys are counted in spaces of their own;
``QUERY_AT(y, x, g, P) -> bool``, ``KEY_AT`` likewise
    whether there is one at a place. A key that is not there is one of zeros and takes weight, unless it is masked, as
    all of these are where MASK is None;
``RELATE(p_bias, table, b_q, q_i, q_j, o_image, o_q, ok, P, BD, PRECISION, UPCAST) -> (b_r, b_c)``
    two blocks [queries, E] in q's dtype: what each query adds to the logits of keys of each row and each column.
    ``p_bias`` and ``table`` mean what the op wants, ``o_q`` counts the queries of one map, ``o_image`` those before it;
``FEATURE(k_i, k_j, c_i, g, P, DTYPE) -> (b_u, b_w, ok)``
    two blocks [keys, E], ones at a key's row and column, and which keys are seen; replaces MASK and BIAS. The scores
    are scale * q k^T + b_r b_u^T + b_c b_w^T. ``c_i`` is where the chunk starts;
``UNRELATE(p_bias, table, b_dr, b_dc, q_i, q_j, o_image, o_q, ok, P, BD, PRECISION, UPCAST) -> [queries, BD]``
    what the gradients of b_r and b_c give to that of q;
``NEAR(head, i, j, P) -> offset``
    instead of BIAS, for float32 numbers: where the bias of a key (i, j) from its query lies, linear in i and j. MASK
    must then be false for queries beyond the space.

TWINS: q, k and v have the same strides, so that their offsets are worked out once. WHOLE: all queries of a tile see all
keys of its box, whole chunks of it, and PLACE is linear: nothing is masked, and a chunk's offsets but for the first are
worked out once a tile. Neither a bias nor a map but MASK and BIAS may stand beside it.

Positions outside the space are never read nor written. Invalid queries carry ``lse = inf``, so their probability is 0.
Scores live in base 2: ``lse`` is log2 of the sum of exponentials. Rounding it costs digits that float32 gradients
need: with ``SPLIT`` it is two numbers, the largest score and the reciprocal of the sum. Every sum is float32, in a
fixed order.
"""

import triton
import triton.language as tl

from ._blocks import (
    LOWEST,
    chunk_offsets,
    exponentials,
    load_chunk,
    load_lse,
    load_rows,
    lse_of,
    over_sum,
    probabilities,
    store_lse,
    store_rows,
)
from ._scores import chunk_bias, masked_scores, related_scores, score_unit


@triton.jit
def _program(tiles, heads, BY_HEAD: tl.constexpr):
    """(head, tile, image). Head varies fastest: neighbouring programs share the cache lines of a token's heads.

    BY_HEAD: tile does, since wide windows of many heads would not stay in the L2 cache until the next tile needs them.
    """
    pid = tl.program_id(0)
    if BY_HEAD:
        rest = pid // tiles
        return rest % heads, pid % tiles, (rest // heads).to(tl.int64)
    head = pid % heads
    rest = pid // heads
    return head, rest % tiles, (rest // tiles).to(tl.int64)


@triton.jit
def _next_chunk(c_i, c_j, i_lo, i_hi, CH: tl.constexpr, CW: tl.constexpr):
    """Down the box's rows, then on to its next columns; counted rather than divided out of a loop index."""
    c_i += CH
    wrap = c_i >= i_hi
    return tl.where(wrap, i_lo, c_i), tl.where(wrap, c_j + CW, c_j)


@triton.jit
def _there(y, x, ok, g, AT: tl.constexpr, P: tl.constexpr):
    """``ok``, and something lies at (y, x)."""
    if AT is None:
        return ok
    else:
        return ok & AT(y, x, g, P)


@triton.jit
def _key_place(i, j, g, PLACE: tl.constexpr, KEY: tl.constexpr, P: tl.constexpr):
    if KEY is None:
        return PLACE(i, j, g, P)
    else:
        return KEY(i, j, g, P)


@triton.jit
def _row(c_i, i, LIST: tl.constexpr):
    """The rows of a chunk as index maps get them."""
    if LIST is None:
        return i
    else:
        return c_i


@triton.jit
def attend_forward(
    p_q, p_k, p_v, p_bias, p_out, p_lse,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, tiles, a_y, a_x, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, SPAN: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
    KEY: tl.constexpr = None, QUERY_AT: tl.constexpr = None, KEY_AT: tl.constexpr = None, RELATE: tl.constexpr = None,
    FEATURE: tl.constexpr = None, LIST: tl.constexpr = None, NEAR: tl.constexpr = None,
    TWINS: tl.constexpr = False, BY_HEAD: tl.constexpr = False, WHOLE: tl.constexpr = False,
):  # fmt: skip
    """out = softmax(scale q k^T + bias) v and the log2-sum-exp of a tile of queries. Strides count ALIGN elements."""
    head, t, b = _program(tiles, heads, BY_HEAD)
    i0, j0, n_i, n_j, g = LOCATE(t, height, width, a_y, a_x, TH, TW, P)
    if (i0 >= n_i) | (j0 >= n_j):
        return
    if LIST is not None:
        g = LIST(p_bias, table, b, g, P)
    if TWINS:
        v_y, v_x = k_y, k_x
    p_q += (b * q_b + head * q_h) * ALIGN
    p_k += (b * k_b + head * k_h) * ALIGN
    p_v += (b * v_b + head * v_h) * ALIGN
    o_m = tl.arange(0, TH * TW)
    o_n = tl.arange(0, CH * CW)
    q_i = i0 + o_m // TW
    q_j = j0 + o_m % TW
    m_q = (q_i < n_i) & (q_j < n_j)
    y, x = PLACE(q_i, q_j, g, P)
    m_q = _there(y, x, m_q, g, QUERY_AT, P)
    own_y, own_x = OWN(q_i, q_j, g, P)
    b_q = load_rows(p_q, q_y, q_x, ALIGN, own_y, own_x, m_q, D, BD, UPCAST)  # [BM, BD]
    if RELATE is not None:
        o_image = (b * heads + head) * height * width
        b_r, b_c = RELATE(p_bias, table, b_q, q_i, q_j, o_image, y * width + x, m_q, P, BD, PRECISION, UPCAST)
    b_m = tl.full([TH * TW], LOWEST, tl.float32)
    b_l = tl.zeros([TH * TW], tl.float32)
    b_o = tl.zeros([TH * TW, BDV], tl.float32)

    i_lo, i_hi, j_lo, j_hi = SPAN(i0, j0, n_i, n_j, g, TH, TW, P)
    unit = score_unit(scale, HAS_BIAS)
    c_i, c_j = i_lo, j_lo
    if WHOLE:
        o_k = chunk_offsets(k_y, k_x, ALIGN, g, CH, CW, PLACE, P)
        o_v = o_k if TWINS else chunk_offsets(v_y, v_x, ALIGN, g, CH, CW, PLACE, P)
    for _ in range(tl.cdiv(i_hi - i_lo, CH) * tl.cdiv(j_hi - j_lo, CW)):
        if WHOLE:
            ky, kx = PLACE(c_i, c_j, g, P)
            b_k = load_chunk(p_k, k_y, k_x, ALIGN, ky, kx, o_k, D, BD, UPCAST)  # [BN, BD]
            b_v = load_chunk(p_v, v_y, v_x, ALIGN, ky, kx, o_v, DV, BDV, UPCAST)  # [BN, BDV]
        else:
            k_i = c_i + o_n // CW
            k_j = c_j + o_n % CW
            m_k = (k_i < i_hi) & (k_j < j_hi)
            ky, kx = _key_place(_row(c_i, k_i, LIST), k_j, g, PLACE, KEY, P)
            m_k = _there(ky, kx, m_k, g, KEY_AT, P)
            b_k = load_rows(p_k, k_y, k_x, ALIGN, ky, kx, m_k, D, BD, UPCAST)  # [BN, BD]
            b_v = load_rows(p_v, v_y, v_x, ALIGN, ky, kx, m_k, DV, BDV, UPCAST)  # [BN, BDV]
        if WHOLE:
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        elif RELATE is None:
            p_near, near = p_bias, 0
            if HAS_BIAS and NEAR is not None:
                p_near, near = chunk_bias(p_bias, head, c_i - q_i, c_j - q_j, o_n, 1, CW, NEAR, P)
            b_s = masked_scores(b_q, b_k, scale, p_near, near, table, head, q_i[:, None], q_j[:, None], k_i[None, :],
                                k_j[None, :], n_i, n_j, g, MASK, m_k[None, :], BIAS, NEAR, P, HAS_BIAS, PRECISION,
                                FTZ)  # fmt: skip  # [BM, BN]
        else:
            b_u, b_w, seen = FEATURE(k_i, k_j, c_i, g, P, b_k.dtype)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            b_s = related_scores(b_s, b_r, b_c, tl.trans(b_u), tl.trans(b_w), seen[None, :], scale, PRECISION)
        b_m_new = tl.maximum(b_m, tl.max(b_s, 1) if SPLIT else tl.max(b_s, 1) * unit)
        b_p = exponentials(b_s, unit, b_m_new[:, None], SPLIT, FTZ)
        alpha = exponentials(b_m, unit if SPLIT else 1.0, b_m_new, SPLIT, FTZ)
        b_l = b_l * alpha + tl.sum(b_p, 1)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * alpha[:, None], input_precision=PRECISION)
        b_m = b_m_new
        c_i, c_j = _next_chunk(c_i, c_j, i_lo, i_hi, CH, CW)

    if LIST is None:
        b_l = tl.where(m_q, b_l, 1.0)
    else:  # a list may be empty: a query that sees nothing gets zeros
        b_l = tl.where(m_q & (b_l > 0), b_l, 1.0)
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    p_out += b * height * width * o_x * UNIT + head * DV
    store_rows(p_out, width * o_x, o_x, UNIT, y, x, m_q, over_sum(b_o, b_l, SPLIT, FTZ), DV, BDV)
    store_lse(p_lse, (b * heads + head) * height * width + (y * width + x), m_q, b_m, b_l, SPLIT, FTZ)


@triton.jit
def attend_backward_kv(
    p_q, p_k, p_v, p_bias, p_grad, p_lse, p_delta, p_dk, p_dv,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h, d_b, d_y, d_x, d_h, e_b, e_y, e_x, e_h,
    height, width, heads, tiles, a_y, a_x, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, SPAN_T: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr,
    KEY: tl.constexpr = None, QUERY_AT: tl.constexpr = None, KEY_AT: tl.constexpr = None, RELATE: tl.constexpr = None,
    FEATURE: tl.constexpr = None, LIST: tl.constexpr = None, NEAR: tl.constexpr = None, BY_HEAD: tl.constexpr = False,
):  # fmt: skip
    """dk and dv of a tile of keys: walks the queries that see it, the inverse neighborhood; nothing is scattered."""
    head, t, b = _program(tiles, heads, BY_HEAD)
    i0, j0, n_i, n_j, g = LOCATE(t, height, width, a_y, a_x, TH, TW, P)
    if (i0 >= n_i) | (j0 >= n_j):
        return
    if LIST is not None:
        g = LIST(p_bias, table, b, g, P)
    p_q += (b * q_b + head * q_h) * ALIGN
    p_k += (b * k_b + head * k_h) * ALIGN
    p_v += (b * v_b + head * v_h) * ALIGN
    p_dk += (b * d_b + head * d_h) * ALIGN
    p_dv += (b * e_b + head * e_h) * ALIGN
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    p_grad += b * height * width * o_x * UNIT + head * DV
    o_image = (b * heads + head) * height * width
    p_lse = lse_of(p_lse, o_image, SPLIT)
    p_delta += o_image
    o_m = tl.arange(0, TH * TW)
    o_n = tl.arange(0, CH * CW)
    k_i = i0 + o_m // TW
    k_j = j0 + o_m % TW
    m_k = (k_i < n_i) & (k_j < n_j)
    y, x = _key_place(k_i, k_j, g, PLACE, KEY, P)
    m_k = _there(y, x, m_k, g, KEY_AT, P)
    b_k = load_rows(p_k, k_y, k_x, ALIGN, y, x, m_k, D, BD, UPCAST)  # [BM, BD]
    b_v = load_rows(p_v, v_y, v_x, ALIGN, y, x, m_k, DV, BDV, UPCAST)  # [BM, BDV]
    b_dk = tl.zeros([TH * TW, BD], tl.float32)
    b_dv = tl.zeros([TH * TW, BDV], tl.float32)

    i_lo, i_hi, j_lo, j_hi = SPAN_T(i0, j0, n_i, n_j, g, TH, TW, P)
    unit = score_unit(scale, HAS_BIAS)
    c_i, c_j = i_lo, j_lo
    for _ in range(tl.cdiv(i_hi - i_lo, CH) * tl.cdiv(j_hi - j_lo, CW)):
        q_i = c_i + o_n // CW
        q_j = c_j + o_n % CW
        m_q = (q_i < i_hi) & (q_j < j_hi)
        qy, qx = PLACE(_row(c_i, q_i, LIST), q_j, g, P)
        m_q = _there(qy, qx, m_q, g, QUERY_AT, P)
        o_q = qy * width + qx
        own_y, own_x = OWN(_row(c_i, q_i, LIST), q_j, g, P)
        b_q = load_rows(p_q, q_y, q_x, ALIGN, own_y, own_x, m_q, D, BD, UPCAST)  # [BN, BD]
        b_g = load_rows(p_grad, o_y, o_x, UNIT, qy, qx, m_q, DV, BDV, UPCAST)  # [BN, BDV]
        b_lse, b_norm = load_lse(p_lse, o_q, m_q, SPLIT)
        b_delta = tl.load(p_delta + o_q, mask=m_q, other=0.0)
        if RELATE is None:
            p_near, near = p_bias, 0
            if HAS_BIAS and NEAR is not None:
                p_near, near = chunk_bias(p_bias, head, k_i - c_i, k_j - c_j, o_n, -1, CW, NEAR, P)
            b_s = masked_scores(b_k, b_q, scale, p_near, near, table, head, q_i[None, :], q_j[None, :], k_i[:, None],
                                k_j[:, None], n_i, n_j, g, MASK, m_k[:, None], BIAS, NEAR, P, HAS_BIAS, PRECISION,
                                FTZ)  # fmt: skip  # [keys BM, queries BN]
        else:
            b_r, b_c = RELATE(p_bias, table, b_q, q_i, q_j, o_image, o_q, m_q, P, BD, PRECISION, UPCAST)
            b_u, b_w, seen = FEATURE(k_i, k_j, c_i, g, P, b_k.dtype)
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
            b_s = related_scores(b_s, b_u, b_w, tl.trans(b_r), tl.trans(b_c), seen[:, None], scale, PRECISION)
        b_p = probabilities(b_s, unit, b_lse[None, :], b_norm[None, :], SPLIT, FTZ)
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
        c_i, c_j = _next_chunk(c_i, c_j, i_lo, i_hi, CH, CW)

    store_rows(p_dk, d_y, d_x, ALIGN, y, x, m_k, b_dk * scale, D, BD)
    store_rows(p_dv, e_y, e_x, ALIGN, y, x, m_k, b_dv, DV, BDV)
