"""The tile engine where one tile holds a whole space: queries and keys are the same at most 64 positions.

Windows, and dilation groups that the kernel just fills. Programs are persistent: program (slice, head) walks its
share of all spaces of the batch, so the mask and the bias are one [N, N] block of registers, loaded once, and the
gradient of the bias is another, stored once. Index maps are those of :mod:`._attend`.

Unless all spaces are ``ALIKE``, they are of several kinds: those that the map's edge cuts, or that are made of pieces
from its two ends (shifted windows), attend under other masks. They are walked kind by kind, so that the mask is still
made before the walk, and

``KINDS(height, width, a_y, a_x, P) -> n``
    says how many kinds a map has, none of them empty;
``KIND(kind, height, width, a_y, a_x, P) -> (before, n, h)``
    how many spaces of the kinds before a kind, and how many of this one it has;
``PICK(r, h, height, width, a_y, a_x, TH, TW, P)``
    what LOCATE says, of the r-th space of a kind;
``CLAMP``
    whether BIAS may answer with an offset outside of the bias, for pairs that do not attend;
``PART(i, j, g, P) -> part``
    which positions attend to each other: those whose parts are equal; negative outside the map. The same for all spaces
    of a kind.
"""

import triton
import triton.language as tl

from ._blocks import (
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
def _pair_bias(p_bias, count, head, i, j, g, ok, PART: tl.constexpr, ALIKE: tl.constexpr, BIAS: tl.constexpr,
               P: tl.constexpr, HAS_BIAS: tl.constexpr, CLAMP: tl.constexpr, FTZ: tl.constexpr,
               SPLIT: tl.constexpr):  # fmt: skip
    """Bias in ``logit_base``, -inf where no pair attends, [N queries, N keys]; the same for every space of a kind."""
    b_bias = tl.where(ok[None, :] & (i == i)[:, None], 0.0, MASKED)
    if HAS_BIAS:
        offset = BIAS(head, i[:, None], j[:, None], i[None, :], j[None, :], g, P, count)
        b_bias += gather(p_bias, offset, count, FTZ, CLAMP) * logit_base(SPLIT)
    if not ALIKE:
        b_part = PART(i, j, g, P)
        # queries of the tile's padding see something, so that no row is without a key
        b_bias = tl.where((b_part[:, None] == b_part[None, :]) | (ok == 0)[:, None], b_bias, MASKED)
    return b_bias


@triton.jit
def _share(first, slices, tiles, windows, height, width, a_y, a_x, ALIKE: tl.constexpr, KINDS: tl.constexpr,
           KIND: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """(kinds from, to, spaces from, to) of the first-th of ``slices`` programs.

    Spaces alike are dealt out one by one. Of several kinds each program gets a run, in the order of kinds, so that few
    programs meet more than one.
    """
    if ALIKE:
        return 0, 1, first, windows
    else:
        lo = windows // slices * first + tl.minimum(first, windows % slices)
        hi = lo + windows // slices + (first < windows % slices).to(tl.int32)
        batch = windows // tiles
        from_kind, to_kind = 0, 0
        for kind in range(KINDS(height, width, a_y, a_x, P)):
            before, count, h = KIND(kind, height, width, a_y, a_x, P)
            from_kind = tl.where((before + count) * batch <= lo, kind + 1, from_kind)
            to_kind = tl.where(before * batch < hi, kind + 1, to_kind)
        return from_kind, to_kind, lo, hi


@triton.jit
def _walk(kind, lo, hi, slices, tiles, windows, height, width, a_y, a_x, ALIKE: tl.constexpr, KIND: tl.constexpr,
          P: tl.constexpr):  # fmt: skip
    """(spaces of a kind in a map, what PICK needs, the range of those that are this program's)."""
    if ALIKE:
        return tiles, 0, lo, hi, slices
    else:
        # Nothing is carried from one kind to the next: Triton 3.6 loses what a loop around a pipelined one carries.
        before, count, h = KIND(kind, height, width, a_y, a_x, P)
        batch = windows // tiles
        return count, h, tl.maximum(lo - before * batch, 0), tl.minimum(hi - before * batch, count * batch), 1


@triton.jit
def _locate(r, h, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, ALIKE: tl.constexpr,
            LOCATE: tl.constexpr, PICK: tl.constexpr, P: tl.constexpr):  # fmt: skip
    if ALIKE:
        return LOCATE(r, height, width, a_y, a_x, TH, TW, P)
    else:
        return PICK(r, h, height, width, a_y, a_x, TH, TW, P)


@triton.jit
def _afresh(j, kind, ALIKE: tl.constexpr, FTZ: tl.constexpr):
    """j. The compiler must not see that it is the same for every kind: it would hold all that follows from it, a block
    of bias among that, in registers from one kind to the next."""
    if not ALIKE and FTZ:
        zero = tl.inline_asm_elementwise("min.s32 $0, $1, 0;", "=r,r", [kind], dtype=tl.int32, is_pure=False, pack=1)
        return j + zero
    else:
        return j


@triton.jit
def attend_closed_forward(
    p_q, p_k, p_v, p_bias, p_out, p_lse,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    height, width, heads, tiles, windows, a_y, a_x, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, ALIKE: tl.constexpr, KINDS: tl.constexpr,
    KIND: tl.constexpr, PICK: tl.constexpr, PART: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, CLAMP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FTZ: tl.constexpr,
    SPLIT: tl.constexpr, TWINS: tl.constexpr = False,
):  # fmt: skip
    """out and lse of all windows of one head in this program's slice. Strides count ALIGN elements."""
    if TWINS:
        k_b, k_y, k_x, k_h = q_b, q_y, q_x, q_h
        v_b, v_y, v_x, v_h = q_b, q_y, q_x, q_h
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads
    slices = tl.num_programs(0) // heads
    o_m = tl.arange(0, TH * TW)
    i = o_m // TW
    j = o_m % TW
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    unit = scale * logit_base(SPLIT)
    from_kind, to_kind, lo, hi = _share(first, slices, tiles, windows, height, width, a_y, a_x, ALIKE, KINDS, KIND, P)
    for kind in range(from_kind, to_kind):
        count, h, start, stop, step = _walk(
            kind, lo, hi, slices, tiles, windows, height, width, a_y, a_x, ALIKE, KIND, P
        )
        i0, j0, n_i, n_j, g = _locate(0, h, height, width, a_y, a_x, TH, TW, ALIKE, LOCATE, PICK, P)
        j_kind = _afresh(j, kind, ALIKE, FTZ)
        ok = (i < n_i) & (j_kind < n_j)
        if not ALIKE:
            ok = ok & (PART(i, j_kind, g, P) >= 0)
        b_bias = _pair_bias(p_bias, table, head, i, j_kind, g, ok, PART, ALIKE, BIAS, P, HAS_BIAS, CLAMP, FTZ, SPLIT)
        for w in range(start, stop, step):
            i0, j0, n_i, n_j, g = _locate(w % count, h, height, width, a_y, a_x, TH, TW, ALIKE, LOCATE, PICK, P)
            b = (w // count).to(tl.int64)
            y, x = PLACE(i, j, g, P)
            own_y, own_x = OWN(i, j, g, P)
            b_q = load_rows(
                p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, own_y, own_x, ok, D, BD, UPCAST
            )
            b_k = load_rows(p_k + (b * k_b + head * k_h) * ALIGN, k_y, k_x, ALIGN, y, x, ok, D, BD, UPCAST)
            b_v = load_rows(p_v + (b * v_b + head * v_h) * ALIGN, v_y, v_x, ALIGN, y, x, ok, DV, BDV, UPCAST)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_bias
            b_m = tl.max(b_s, 1)
            b_p = exponentials(b_s, LOG2E if SPLIT else 1.0, b_m[:, None], SPLIT, FTZ)
            b_l = tl.sum(b_p, 1)
            b_o = over_sum(tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION), b_l, SPLIT, FTZ)
            store_rows(p_out + b * height * o_y * UNIT + head * DV, o_y, o_x, UNIT, y, x, ok, b_o, DV, BDV)
            o_row = (b * heads + head) * height * width + (y * width + x)
            store_lse(p_lse, o_row, ok, b_m, b_l, SPLIT, FTZ)


@triton.jit
def attend_closed_backward(
    p_q, p_k, p_v, p_bias, p_grad, p_lse, p_dq, p_dk, p_dv, p_dbias,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    c_b, c_y, c_x, c_h, d_b, d_y, d_x, d_h, e_b, e_y, e_x, e_h,
    height, width, heads, tiles, windows, a_y, a_x, scale, table,
    LOCATE: tl.constexpr, PLACE: tl.constexpr, OWN: tl.constexpr, ALIKE: tl.constexpr, KINDS: tl.constexpr,
    KIND: tl.constexpr, PICK: tl.constexpr, PART: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr, CLAMP: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, FTZ: tl.constexpr, SPLIT: tl.constexpr, TWINS: tl.constexpr = False,
):  # fmt: skip
    """All gradients of this program's slice; ``p_dbias``: one [TH * TW, TH * TW] sum of dS a program."""
    if TWINS:
        k_b, k_y, k_x, k_h = q_b, q_y, q_x, q_h
        v_b, v_y, v_x, v_h = q_b, q_y, q_x, q_h
        d_b, d_y, d_x, d_h = c_b, c_y, c_x, c_h
        e_b, e_y, e_x, e_h = c_b, c_y, c_x, c_h
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads
    slices = tl.num_programs(0) // heads
    o_m = tl.arange(0, TH * TW)
    i = o_m // TW
    j = o_m % TW
    UNIT: tl.constexpr = DV & -DV  # of rows of out and its gradient
    o_x = heads * (DV // UNIT)
    o_y = width * o_x
    unit = scale * logit_base(SPLIT)
    b_dbias = tl.zeros([TH * TW, TH * TW], tl.float32)
    from_kind, to_kind, lo, hi = _share(first, slices, tiles, windows, height, width, a_y, a_x, ALIKE, KINDS, KIND, P)
    for kind in range(from_kind, to_kind):
        count, h, start, stop, step = _walk(
            kind, lo, hi, slices, tiles, windows, height, width, a_y, a_x, ALIKE, KIND, P
        )
        i0, j0, n_i, n_j, g = _locate(0, h, height, width, a_y, a_x, TH, TW, ALIKE, LOCATE, PICK, P)
        j_kind = _afresh(j, kind, ALIKE, FTZ)
        ok = (i < n_i) & (j_kind < n_j)
        if not ALIKE:
            ok = ok & (PART(i, j_kind, g, P) >= 0)
        b_bias = _pair_bias(p_bias, table, head, i, j_kind, g, ok, PART, ALIKE, BIAS, P, HAS_BIAS, CLAMP, FTZ, SPLIT)
        for w in range(start, stop, step):
            i0, j0, n_i, n_j, g = _locate(w % count, h, height, width, a_y, a_x, TH, TW, ALIKE, LOCATE, PICK, P)
            b = (w // count).to(tl.int64)
            y, x = PLACE(i, j, g, P)
            own_y, own_x = OWN(i, j, g, P)
            o_image = b * height * o_y * UNIT + head * DV
            o_row = (b * heads + head) * height * width + (y * width + x)
            b_q = load_rows(
                p_q + (b * q_b + head * q_h) * ALIGN, q_y, q_x, ALIGN, own_y, own_x, ok, D, BD, UPCAST
            )
            b_k = load_rows(p_k + (b * k_b + head * k_h) * ALIGN, k_y, k_x, ALIGN, y, x, ok, D, BD, UPCAST)
            b_v = load_rows(p_v + (b * v_b + head * v_h) * ALIGN, v_y, v_x, ALIGN, y, x, ok, DV, BDV, UPCAST)
            b_g = load_rows(p_grad + o_image, o_y, o_x, UNIT, y, x, ok, DV, BDV, UPCAST)
            b_lse, b_norm = load_lse(p_lse, o_row, ok, SPLIT)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * unit + b_bias
            b_p = probabilities(b_s, LOG2E if SPLIT else 1.0, b_lse[:, None], b_norm[:, None], SPLIT, FTZ)  # [BM, BM]
            if SPLIT:  # the sum of dS over a row is exactly 0 only where that of p is 1
                b_p /= tl.where(ok, tl.sum(b_p, 1), 1.0)[:, None]
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
            b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])
            if BIAS_GRAD:
                b_dbias += b_ds
            b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, input_precision=PRECISION)
            b_ds = b_ds.to(b_q.dtype)
            b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PRECISION)
            b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION)
            store_rows(p_dv + (b * e_b + head * e_h) * ALIGN, e_y, e_x, ALIGN, y, x, ok, b_dv, DV, BDV)
            store_rows(p_dk + (b * d_b + head * d_h) * ALIGN, d_y, d_x, ALIGN, y, x, ok, b_dk * scale, D, BD)
            store_rows(p_dq + (b * c_b + head * c_h) * ALIGN, c_y, c_x, ALIGN, y, x, ok, b_dq * scale, D, BD)
    if BIAS_GRAD:
        p_dbias += tl.program_id(0).to(tl.int64) * (TH * TW * TH * TW)
        tl.store(p_dbias + o_m[:, None] * (TH * TW) + o_m[None, :], b_dbias)


@triton.jit
def closed_cell(d, m, P: tl.constexpr, T: tl.constexpr):
    """For ``fold_bias``: the pair of the tile T = (TH, TW) whose query is position m and whose displacement is d."""
    W: tl.constexpr = 2 * P[1] - 1
    i = m // T[1]
    j = m % T[1]
    k_i = i + d // W - (P[0] - 1)
    k_j = j + d % W - (P[1] - 1)
    ok = (i < P[0]) & (j < P[1]) & (k_i >= 0) & (k_i < P[0]) & (k_j >= 0) & (k_j < P[1])
    return m * (T[0] * T[1]) + k_i * T[1] + k_j, ok
