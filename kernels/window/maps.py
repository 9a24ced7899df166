"""Index maps of window attention for the tile engine (``kernels/_attend.py`` says what each one answers).

The space of a tile is one window as a line, its positions in reading order: i is always 0. ``P`` is (window rows,
window columns); the run-time numbers a_y, a_x are the shift. Blocks come in two ways:

*packed*, for kernels that spend the same time on every window: the window that the map's far end cuts and the one that
its near end cuts are one line of two parts, as if the map were rolled, so there are as few windows as can be;
*cut*, for kernels that walk what there is: each window is the line of those of its positions that lie in the map.

Grids have nothing to pack. ``g`` starts with (first row, first column, row step, column step).
"""

import triton
import triton.language as tl


@triton.jit
def _outside(y, x, height, width):
    return (y >= height) | (x >= width)


@triton.jit
def packed_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    n_y = tl.cdiv(height, P[0])
    n_x = tl.cdiv(width, P[1])
    first_y = t // n_x * P[0] + a_y
    first_x = t % n_x * P[1] + a_x
    return 0, 0, 1, P[0] * P[1], (first_y, first_x, n_y * P[0], n_x * P[1], height, width)


@triton.jit
def packed_place(i, j, g, P: tl.constexpr):
    y = g[0] + j // P[1]
    x = g[1] + j % P[1]
    return tl.where(y >= g[2], y - g[2], y), tl.where(x >= g[3], x - g[3], x)


@triton.jit
def packed_part(i, j, g, P: tl.constexpr):
    y, x = packed_place(i, j, g, P)
    part = (g[0] + j // P[1] >= g[2]).to(tl.int32) * 2 + (g[1] + j % P[1] >= g[3]).to(tl.int32)
    return tl.where(_outside(y, x, g[4], g[5]), -1, part)


@triton.jit
def cut_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    """One tile of a cut block: beside its first place in the map, ``g`` holds its first place in the whole window."""
    per: tl.constexpr = (P[0] * P[1] + TW - 1) // TW
    w = t // per
    n_x = tl.cdiv(width - a_x, P[1]) + (a_x > 0).to(tl.int32)
    start_y = a_y + (w // n_x - (a_y > 0).to(tl.int32)) * P[0]
    start_x = a_x + (w % n_x - (a_x > 0).to(tl.int32)) * P[1]
    lo_y = tl.maximum(-start_y, 0)
    lo_x = tl.maximum(-start_x, 0)
    rows = tl.minimum(P[0], height - start_y) - lo_y
    columns = tl.minimum(P[1], width - start_x) - lo_x
    return 0, t % per * TW, 1, rows * columns, (start_y + lo_y, start_x + lo_x, 1, 1, columns, lo_y, lo_x)


@triton.jit
def cut_grid_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    per: tl.constexpr = (P[0] * P[1] + TW - 1) // TW
    w = t // per
    step_y = tl.cdiv(height, P[0])
    step_x = tl.cdiv(width, P[1])
    first_y = w // step_x
    first_x = w % step_x
    rows = tl.cdiv(height - first_y, step_y)
    columns = tl.cdiv(width - first_x, step_x)
    return 0, t % per * TW, 1, rows * columns, (first_y, first_x, step_y, step_x, columns, 0, 0)


@triton.jit
def cut_place(i, j, g, P: tl.constexpr):
    return g[0] + j // g[4] * g[2], g[1] + j % g[4] * g[3]


@triton.jit
def cut_own(i, j, g, P: tl.constexpr):
    """The place of a position in the one window of queries that all windows share."""
    return g[5] + j // g[4], g[6] + j % g[4]


@triton.jit
def cut_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, 1, 0, n_j


@triton.jit
def in_line(q_i, q_j, k_i, k_j, n_i, n_j, P: tl.constexpr):
    """A chunk of keys may reach beyond the line; queries that do are ruled out by their sums."""
    return k_j < n_j


@triton.jit
def cut_pair_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr):
    N: tl.constexpr = P[0] * P[1]
    q_n = (g[5] + q_j // g[4]) * P[1] + g[6] + q_j % g[4]
    k_n = (g[5] + k_j // g[4]) * P[1] + g[6] + k_j % g[4]
    return k_n + (head * N + q_n) * N


@triton.jit
def grid_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    step_y = tl.cdiv(height, P[0])
    step_x = tl.cdiv(width, P[1])
    return 0, 0, 1, P[0] * P[1], (t // step_x, t % step_x, step_y, step_x, height, width)


@triton.jit
def grid_place(i, j, g, P: tl.constexpr):
    return g[0] + j // P[1] * g[2], g[1] + j % P[1] * g[3]


@triton.jit
def grid_part(i, j, g, P: tl.constexpr):
    y, x = grid_place(i, j, g, P)
    return tl.where(_outside(y, x, g[4], g[5]), -1, 0)


@triton.jit
def own(i, j, g, P: tl.constexpr):
    """As ``cut_own``, of whole windows."""
    return j // P[1], j % P[1]


@triton.jit
def pair_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr):
    """Offset into the bias [heads, N, N] of whole windows."""
    N: tl.constexpr = P[0] * P[1]
    return k_j + (head * N + q_j) * N
