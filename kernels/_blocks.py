"""What every attention kernel is made of: rows of a map in and out, base-2 exponentials and their sums, gathers."""

import triton
import triton.language as tl

MASKED = tl.constexpr(float("-inf"))
LOWEST = tl.constexpr(-1e30)  # a finite start of the running maximum: a chunk without any valid key stays NaN-free
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows(p, s_y, s_x, UNIT: tl.constexpr, y, x, ok, D: tl.constexpr, BD: tl.constexpr):
    """Pointers to and validity of the rows of D elements at (y, x), strides in units of UNIT: two [N, BD] blocks.

    Units are counted in 32 bits, for a fifth of the instructions: ``_host.unsupported`` sees that they suffice.
    """
    o_d = tl.arange(0, BD)
    ptr = p + ((y * s_y + x * s_x).to(tl.int64) * UNIT)[:, None] + o_d[None, :]
    mask = ok[:, None]
    if BD != D:
        mask = mask & (o_d < D)[None, :]
    return ptr, mask


@triton.jit
def load_rows(
    p, s_y, s_x, UNIT: tl.constexpr, y, x, ok, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr
):
    ptr, mask = rows(p, s_y, s_x, UNIT, y, x, ok, D, BD)
    b = tl.load(ptr, mask=mask, other=0.0)
    if UPCAST:  # Triton's interpreter multiplies bfloat16 blocks wrongly
        b = b.to(tl.float32)
    return b


@triton.jit
def chunk_offsets(s_y, s_x, UNIT: tl.constexpr, g, CH: tl.constexpr, CW: tl.constexpr, PLACE: tl.constexpr,
                  P: tl.constexpr):  # fmt: skip
    """How far the rows of a chunk's CH x CW positions lie behind that of its first, [CH * CW]; PLACE is linear."""
    o_n = tl.arange(0, CH * CW)
    y, x = PLACE(o_n // CW, o_n % CW, g, P)
    first_y, first_x = PLACE(0, 0, g, P)
    return ((y - first_y) * s_y + (x - first_x) * s_x).to(tl.int64) * UNIT


@triton.jit
def load_chunk(p, s_y, s_x, UNIT: tl.constexpr, y, x, o, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of D elements at the offsets ``o`` behind the one at (y, x): a block [N, BD]; all of them are there."""
    o_d = tl.arange(0, BD)
    ptr = (p + (y * s_y + x * s_x).to(tl.int64) * UNIT) + (o[:, None] + o_d[None, :])
    if BD == D:
        b = tl.load(ptr)
    else:
        b = tl.load(ptr, mask=(o_d < D)[None, :], other=0.0)
    if UPCAST:  # Triton's interpreter multiplies bfloat16 blocks wrongly
        b = b.to(tl.float32)
    return b


@triton.jit
def store_rows(p, s_y, s_x, UNIT: tl.constexpr, y, x, ok, b, D: tl.constexpr, BD: tl.constexpr):
    ptr, mask = rows(p, s_y, s_x, UNIT, y, x, ok, D, BD)
    tl.store(ptr, b.to(p.dtype.element_ty), mask=mask)


@triton.jit
def _exp2(x, FTZ: tl.constexpr):
    if FTZ:  # one instruction; tl.exp2 spends three more on denormals, which a probability does not need
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def over_sum(b_o, b_l, SPLIT: tl.constexpr, FTZ: tl.constexpr):
    """[N, BDV] over the sums [N] of exponentials, the largest of which are 1."""
    if SPLIT:
        return b_o / b_l[:, None]
    if FTZ:  # rounds twice, by 2^-23 each; a division guards every element against factors that do not occur
        return b_o * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b_l], dtype=tl.float32, is_pure=True, pack=1
        )[:, None]
    return b_o * (1.0 / b_l)[:, None]


@triton.jit
def _log2(x, FTZ: tl.constexpr):
    if FTZ:  # to 2^-22, as a score of this size is rounded
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def store_lse(p, o, ok, b_m, b_l, SPLIT: tl.constexpr, FTZ: tl.constexpr):
    """What the backward kernels need to find a query's probabilities again: of the scores' maximum and their sum."""
    if SPLIT:
        tl.store(p + 2 * o, b_m, mask=ok)
        tl.store(p + 2 * o + 1, 1.0 / b_l, mask=ok)
    else:
        tl.store(p + o, b_m + _log2(b_l, FTZ), mask=ok)


@triton.jit
def lse_of(p, o, SPLIT: tl.constexpr):
    """``p`` where what :func:`store_lse` leaves of query o begins: of an image, so that offsets in it take 32 bits."""
    return p + o * (2 if SPLIT else 1)


@triton.jit
def load_lse(p, o, ok, SPLIT: tl.constexpr):
    """The two numbers a query that :func:`probabilities` takes; the second is any where there is but one."""
    if SPLIT:
        p = p + o + o  # not 2 * o, which may take more than 32 bits
        return tl.load(p, mask=ok, other=float("inf")), tl.load(p + 1, mask=ok, other=0.0)
    b_lse = tl.load(p + o, mask=ok, other=float("inf"))
    return b_lse, b_lse


@triton.jit
def logit_base(SPLIT: tl.constexpr):
    """What turns natural logits into those that the kernels sum up: base 2, unless digits are dearer than time."""
    return 1.0 if SPLIT else LOG2E


@triton.jit
def exponentials(b_s, unit, b_m, SPLIT: tl.constexpr, FTZ: tl.constexpr):
    """2 ** (b_s * unit - b_m); with SPLIT b_m is in units of b_s, and their difference loses no digits."""
    if SPLIT:
        return _exp2((b_s - b_m) * unit, FTZ)
    return _exp2(b_s * unit - b_m, FTZ)


@triton.jit
def probabilities(b_s, unit, b_lse, b_norm, SPLIT: tl.constexpr, FTZ: tl.constexpr):
    b_p = exponentials(b_s, unit, b_lse, SPLIT, FTZ)
    if SPLIT:
        b_p *= b_norm
    return b_p


@triton.jit
def gather(p, offset, count, FTZ: tl.constexpr, CLAMP: tl.constexpr = True):
    """float32 of what is at p + offset, clamped to 0..count - 1 unless all lie there, in whatever layout its user has.

    ``tl.load`` would pick a layout of its own and move every score through shared memory to meet it. Clamping is
    cheaper than masking: pairs that do not attend are masked by their score.
    """
    if CLAMP:
        offset = tl.minimum(tl.maximum(offset, 0), count - 1)
    if FTZ:
        if p.dtype.element_ty == tl.float32:
            LOAD: tl.constexpr = "{ .reg .b64 a; mad.wide.s32 a, $1, 4, $2; ld.global.nc.f32 $0, [a]; }"
        elif p.dtype.element_ty == tl.float16:
            LOAD: tl.constexpr = (
                "{ .reg .b64 a; .reg .b16 h; mad.wide.s32 a, $1, 2, $2; ld.global.nc.b16 h, [a]; cvt.f32.f16 $0, h; }"
            )
        else:  # bfloat16 is the upper half of a float32
            LOAD: tl.constexpr = (
                "{ .reg .b64 a; .reg .b16 h, z; mov.b16 z, 0; mad.wide.s32 a, $1, 2, $2; ld.global.nc.b16 h, [a]; "
                "mov.b32 $0, {z, h}; }"
            )
        return tl.inline_asm_elementwise(
            LOAD, "=f,r,l", [offset, p.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.load(p + offset).to(tl.float32)


@triton.jit
def gather_seen(p, near, ok, FTZ: tl.constexpr):
    """What is at p + near, pointers to float32 and 64-bit offsets, where ``ok``; -inf elsewhere, without looking."""
    if FTZ:
        return tl.inline_asm_elementwise(
            "{ .reg .pred t; setp.ne.b32 t, $2, 0; mov.b32 $0, 0xFF800000; @t ld.global.nc.f32 $0, [$1]; }",
            "=f,l,r", [p.to(tl.int64) + near * 4, ok.to(tl.int32)], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
    return tl.load(p + near, mask=ok, other=MASKED)
