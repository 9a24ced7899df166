"""Scores of a block of queries and a block of keys, for kernels that inline them."""

import triton
import triton.language as tl

from ._blocks import LOG2E, MASKED, gather, gather_seen


@triton.jit
def masked_scores(
    b_q, b_k, scale, p_bias, near, count, head, q_i, q_j, k_i, k_j, n_i, n_j, g, MASK: tl.constexpr, there,
    BIAS: tl.constexpr, NEAR: tl.constexpr, P: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    FTZ: tl.constexpr,
):  # fmt: skip
    """Scores [M, N] in units of :func:`score_unit`: without a bias the scale is left to the exponent's multiply-add.

    With NEAR ``p_bias`` [M, 1] and ``near`` [1, N] are those of :func:`chunk_bias`.
    """
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    ok = there
    if MASK is not None:
        ok = MASK(q_i, q_j, k_i, k_j, n_i, n_j, P)
    if HAS_BIAS:
        if NEAR is not None:
            b_add = gather_seen(p_bias, near, ok, FTZ)
        else:
            b_add = tl.where(ok, gather(p_bias, BIAS(head, q_i, q_j, k_i, k_j, g, P, count), count, FTZ), MASKED)
        b_s = tl.fma(b_s, scale, b_add)
    else:
        b_s = tl.where(ok, b_s, MASKED)
    return b_s


@triton.jit
def chunk_bias(p_bias, head, i, j, o, SIGN: tl.constexpr, CW: tl.constexpr, NEAR: tl.constexpr, P: tl.constexpr):
    """(pointers [M, 1], offsets [1, N]) of the biases of a chunk: its positions ``o`` go on from displacements (i, j).

    Spelt so that of an offset only what differs from thread to thread takes part in the pointers' arithmetic and the
    rest is known when compiling: an instruction's own offset, so that a pair costs no arithmetic. In the tensor cores'
    layouts of scores the bits 1 and 2 of a column are the thread's, all others the register's.
    """
    far = NEAR(head, i, j, P)[:, None].to(tl.int64)
    of_thread, of_register = o & 6, o & -7
    zero = NEAR(0, 0, 0, P)
    of_thread = (NEAR(0, of_thread // CW, of_thread % CW, P) - zero)[None, :].to(tl.int64)
    of_register = (NEAR(0, of_register // CW, of_register % CW, P) - zero)[None, :].to(tl.int64)
    return p_bias + (far + SIGN * of_thread), SIGN * of_register


@triton.jit
def related_scores(b_s, b_r, b_c, b_u, b_w, ok, scale, PRECISION: tl.constexpr):
    """Masked scores from products b_s: factors [M, E] and [E, N] of what rows and columns add, on the tensor cores."""
    b_add = tl.dot(b_r, b_u, input_precision=PRECISION)
    b_add = tl.dot(b_c, b_w, b_add, input_precision=PRECISION)
    return tl.where(ok, tl.fma(b_s, scale, b_add), MASKED)


@triton.jit
def score_unit(scale, HAS_BIAS: tl.constexpr):
    """What turns :func:`masked_scores` into base-2 logits; positive, so that it commutes with the maximum."""
    if HAS_BIAS:
        return LOG2E
    return scale * LOG2E
