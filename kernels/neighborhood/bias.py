"""How the queries' pass adds dS up into the gradient of the relative table.

A pair's entry is its displacement. In a block of dS, a tile of queries against a chunk of keys, displacements differ by
that of the chunk alone: sums over pairs whose columns, and then rows, lie equally far apart are two products with
matrices of zeros and ones on the tensor cores, a tenth of what the scores take. What is left, a number for each of
(TH + CH - 1) * (TW + CW - 1) entries, is added to the program's sums for blocks of that displacement. Chunks begin on
a grid that moves with the tile, so that there are few such places, and a thread of its own for every sum of them: its
order is that of the blocks.
"""

import triton
import triton.language as tl

from .geometry import Geometry
from .maps import key_span

SIDE = tl.constexpr(16)  # of a block's sums, at least: the tensor cores' smallest product


def places(geometry: Geometry, tile: tuple[int, int], chunk: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(how far before a tile its grid of chunks begins, how many chunks of an axis there are), by axis (rows, columns).

    Of a tile inside the map the first chunk is where its first window begins.
    """
    before, count = [], []
    for k, s, causal, t, c in zip(geometry.kernel, geometry.stride, geometry.causal, tile, chunk, strict=True):
        inside = k - s if causal else k // 2 - s // 2
        before.append(inside - (inside - k + 1) // c * c)
        count.append((before[-1] + t + k - 2) // c + 1)
    return (before[0], before[1]), (count[0], count[1])


def sums(tile: tuple[int, int], chunk: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the sums of a block."""
    rows, columns = (max(SIDE.value, triton.next_power_of_2(t + c - 1)) for t, c in zip(tile, chunk, strict=True))
    return rows, columns


@triton.jit
def gridded_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    """``SPAN``: from where the grid has a chunk, which may lie before the map."""
    i_lo, i_hi, j_lo, j_hi = key_span(i0, j0, n_i, n_j, g, TH, TW, P)
    i0 -= P[7][0]
    j0 -= P[7][1]
    return i0 + (i_lo - i0) // P[9][0] * P[9][0], i_hi, j0 + (j_lo - j0) // P[9][1] * P[9][1], j_hi


@triton.jit
def on_map(y, x, g, P: tl.constexpr):
    """``KEY_AT``."""
    return (y >= 0) & (x >= 0)


@triton.jit
def add_displaced(
    p, b_ds, i, j, P: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``TALLY``: p is where the sums [place's row and column, row and column of displacement] of a program begin."""
    R: tl.constexpr = max(SIDE, triton.next_power_of_2(TH + CH - 1))
    C: tl.constexpr = max(SIDE, triton.next_power_of_2(TW + CW - 1))
    o_y = tl.arange(0, R)
    o_x = tl.arange(0, C)
    o = tl.arange(0, TW * CW)
    m_x = (o % CW - o // CW + TW - 1)[:, None] == o_x[None, :]
    o = tl.arange(0, TH * CH)
    m_y = o_y[:, None] == (o % CH - o // CH + TH - 1)[None, :]
    b = tl.reshape(tl.permute(tl.reshape(b_ds, [TH, TW, CH, CW]), (0, 2, 1, 3)), [TH * CH, TW * CW])
    b = tl.dot(b, m_x.to(b_ds.dtype), input_precision=PRECISION)
    # partial sums of blocks of 16 bit have eight digits too many for it
    PARTIAL: tl.constexpr = PRECISION if b_ds.dtype == tl.float32 else "tf32"
    b = tl.dot(m_y.to(tl.float32), b, input_precision=PARTIAL)
    p += ((i + P[7][0]) // CH * P[8][1] + (j + P[7][1]) // CW) * (R * C)
    # not a load and a store: the load would be taken ahead, past the store before it
    tl.atomic_add(p + o_y[:, None] * C + o_x[None, :], b, sem="relaxed")


@triton.jit
def displaced_cell(d, m, P: tl.constexpr, T: tl.constexpr):
    """For ``fold_bias``: the m-th place where displacement d has a sum.

    ``T``: (before, count) of :func:`places`, tile, chunk, and how many places of an axis, rows and columns, have it.
    """
    W: tl.constexpr = 2 * P[1] - 1
    R: tl.constexpr = max(SIDE, triton.next_power_of_2(T[2][0] + T[3][0] - 1))
    C: tl.constexpr = max(SIDE, triton.next_power_of_2(T[2][1] + T[3][1] - 1))
    # from the grid's beginning to the last of a tile's queries
    row = d // W - (P[0] - 1) + T[0][0] + T[2][0] - 1
    column = d % W - (P[1] - 1) + T[0][1] + T[2][1] - 1
    i = row // T[3][0] - m // T[5]
    j = column // T[3][1] - m % T[5]
    row -= i * T[3][0]
    column -= j * T[3][1]
    ok = (i >= 0) & (i < T[1][0]) & (row < T[2][0] + T[3][0] - 1)
    ok = ok & (j >= 0) & (j < T[1][1]) & (column < T[2][1] + T[3][1] - 1)
    return (i * T[1][1] + j) * R * C + row * C + column, ok
