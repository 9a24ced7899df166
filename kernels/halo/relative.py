"""How relative logits reach a tile, and their gradients leave it.

A query's logit towards a key is a sum of one number for the key's row in the window and one for its column. Both are
made once a query tile: the query times the displacements of a table that occur, on the tensor cores, each row then
moved along by the query's own place in its block. A chunk of keys gets them by products with ones at its keys' rows and
columns, again on the tensor cores: nothing is gathered a pair.

The workspace behind ``p_bias`` holds both tables, ``table`` numbers. In the backward passes 2 E + 2 F numbers a query
follow, in the order of lse: those of rows and of columns, which the dq pass leaves for the dk/dv pass, and their
gradients by displacement, rows and columns, which :func:`table_backward` sums up. ``P`` is as in :mod:`.maps`.
"""

import triton
import triton.language as tl

from .._blocks import load_rows


@triton.jit
def _table(p, AXIS: tl.constexpr, P: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):
    """Displacements of an axis that occur, [F, BD], zeros behind them."""
    FIRST: tl.constexpr = AXIS * (P[0] + 2 * P[2] + P[0] // P[4] - 1)
    COUNT: tl.constexpr = P[AXIS] + 2 * P[2 + AXIS] + P[AXIS] // P[4 + AXIS] - 1
    o_f = tl.arange(0, P[7])
    o_d = tl.arange(0, BD)
    mask = (o_f < COUNT)[:, None] & (o_d < P[8])[None, :]
    b = tl.load(p + (FIRST + o_f)[:, None] * P[8] + o_d[None, :], mask=mask, other=0.0)
    if UPCAST:
        b = b.to(tl.float32)
    return b


@triton.jit
def _number(j, AXIS: tl.constexpr, P: tl.constexpr):
    """The row or column in its block of the j-th query."""
    COLUMNS: tl.constexpr = P[1] // P[5]
    if AXIS == 0:
        return j // COLUMNS
    else:
        return j % COLUMNS


@triton.jit
def _logits(p, b_q, j, AXIS: tl.constexpr, P: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
            UPCAST: tl.constexpr):  # fmt: skip
    """[M, E]: towards each row or column of the window. What lies behind the window is anything finite."""
    b_x = tl.dot(b_q, tl.trans(_table(p, AXIS, P, BD, UPCAST)), input_precision=PRECISION)  # [M, F]
    shift = P[AXIS] // P[4 + AXIS] - 1 - _number(j, AXIS, P)
    index = tl.arange(0, P[6])[None, :] + shift[:, None]
    b_e = tl.gather(b_x, tl.minimum(tl.maximum(index, 0), P[7] - 1), 1)
    return b_e.to(p.dtype.element_ty).to(b_q.dtype)  # every pass sees what the workspace holds


@triton.jit
def _space(p, table, o_image, o_q, FIRST: tl.constexpr, COUNT: tl.constexpr, P: tl.constexpr):
    """Pointers [M, COUNT] to the numbers of queries from the FIRST on."""
    SIZE: tl.constexpr = 2 * P[6] + 2 * P[7]
    return p + (table + o_image * SIZE) + (o_q.to(tl.int64) * SIZE)[:, None] + FIRST + tl.arange(0, COUNT)[None, :]


@triton.jit
def relate(p, table, b_q, q_i, q_j, o_image, o_q, ok, P: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
           UPCAST: tl.constexpr):  # fmt: skip
    b_r = _logits(p, b_q, q_j, 0, P, BD, PRECISION, UPCAST)
    b_c = _logits(p, b_q, q_j, 1, P, BD, PRECISION, UPCAST)
    return b_r, b_c


@triton.jit
def relate_and_keep(p, table, b_q, q_i, q_j, o_image, o_q, ok, P: tl.constexpr, BD: tl.constexpr,
                    PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    b_r, b_c = relate(p, table, b_q, q_i, q_j, o_image, o_q, ok, P, BD, PRECISION, UPCAST)
    tl.store(_space(p, table, o_image, o_q, 0, P[6], P), b_r.to(p.dtype.element_ty), mask=ok[:, None])
    tl.store(_space(p, table, o_image, o_q, P[6], P[6], P), b_c.to(p.dtype.element_ty), mask=ok[:, None])
    return b_r, b_c


@triton.jit
def kept(p, table, b_q, q_i, q_j, o_image, o_q, ok, P: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
         UPCAST: tl.constexpr):  # fmt: skip
    b_r = tl.load(_space(p, table, o_image, o_q, 0, P[6], P), mask=ok[:, None], other=0.0)
    b_c = tl.load(_space(p, table, o_image, o_q, P[6], P[6], P), mask=ok[:, None], other=0.0)
    return b_r.to(b_q.dtype), b_c.to(b_q.dtype)


@triton.jit
def _ones(n, P: tl.constexpr, DTYPE: tl.constexpr):
    return (n[:, None] == tl.arange(0, P[6])[None, :]).to(DTYPE)


@triton.jit
def window_feature(k_i, k_j, c_i, g, P: tl.constexpr, DTYPE: tl.constexpr):
    WIDE: tl.constexpr = P[1] + 2 * P[3]
    ok = k_j < (P[0] + 2 * P[2]) * WIDE
    return _ones(k_j // WIDE, P, DTYPE), _ones(k_j % WIDE, P, DTYPE), ok


@triton.jit
def reader_feature(k_i, k_j, c_i, g, P: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of keys as the c_i-th block that sees some of it does."""
    row = k_i - (g[0] + c_i // g[7]) * P[0] + P[2]
    column = k_j - (g[1] + c_i % g[7]) * P[1] + P[3]
    ok = (row >= 0) & (row < P[0] + 2 * P[2]) & (column >= 0) & (column < P[1] + 2 * P[3])
    return _ones(row, P, DTYPE), _ones(column, P, DTYPE), ok


@triton.jit
def _displace(p, table, b_d, j, o_image, o_q, ok, AXIS: tl.constexpr, P: tl.constexpr, BD: tl.constexpr,
              PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Keeps the gradient [M, E] of :func:`_logits` by displacement; returns what it gives to the query, [M, BD]."""
    b_t = _table(p, AXIS, P, BD, UPCAST)
    shift = P[AXIS] // P[4 + AXIS] - 1 - _number(j, AXIS, P)
    index = tl.arange(0, P[7])[None, :] - shift[:, None]
    ok_x = (index >= 0) & (index < P[AXIS] + 2 * P[2 + AXIS])
    b_x = tl.gather(b_d, tl.minimum(tl.maximum(index, 0), P[6] - 1), 1)
    b_x = tl.where(ok_x, b_x, 0.0).to(b_t.dtype)  # [M, F]
    p_x = _space(p, table, o_image, o_q, 2 * P[6] + AXIS * P[7], P[7], P)
    tl.store(p_x, b_x.to(p.dtype.element_ty), mask=ok[:, None])
    return tl.dot(b_x, b_t, input_precision=PRECISION)


@triton.jit
def unrelate(p, table, b_dr, b_dc, q_i, q_j, o_image, o_q, ok, P: tl.constexpr, BD: tl.constexpr,
             PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    rows = _displace(p, table, b_dr, q_j, o_image, o_q, ok, 0, P, BD, PRECISION, UPCAST)
    return rows + _displace(p, table, b_dc, q_j, o_image, o_q, ok, 1, P, BD, PRECISION, UPCAST)


@triton.jit
def table_backward(
    p_q, p_space, p_partial,
    q_b, q_y, q_x, q_h, height, width, heads, maps, table, slices,
    P: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """partial[slice, 2 F, D]: sum over a slice's queries of gradient by displacement times query.

    ``maps`` is images times heads; a slice takes every ``slices``-th run of BN queries, in order.
    """
    o_f = tl.arange(0, 2 * P[7])
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([2 * P[7], BD], tl.float32)
    runs = tl.cdiv(height * width, BN)
    for run in range(tl.program_id(0), maps * runs, slices):
        m = run // runs
        place = run % runs * BN + tl.arange(0, BN)
        ok = place < height * width
        p_map = p_q + ((m // heads).to(tl.int64) * q_b + m % heads * q_h) * ALIGN
        b_q = load_rows(p_map, q_y, q_x, ALIGN, place // width, place % width, ok, D, BD, UPCAST)
        p_x = _space(p_space, table, m.to(tl.int64) * height * width, place, 2 * P[6], 2 * P[7], P)
        b_x = tl.load(p_x, mask=ok[:, None], other=0.0)  # [BN, 2 F]
        b_sum = tl.dot(tl.trans(b_x.to(b_q.dtype)), b_q, b_sum, input_precision=PRECISION)
    p_partial += tl.program_id(0).to(tl.int64) * (2 * P[7] * D)
    tl.store(p_partial + o_f[:, None] * D + o_d[None, :], b_sum, mask=(o_d < D)[None, :])
