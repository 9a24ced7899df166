"""Index maps of window attention for the tile engine (``kernels/_attend.py`` says what each one answers).

The space of a tile is one window as a line, its positions in reading order: i is always 0. ``P`` is (window rows,
window columns, whether it is a grid); the run-time numbers a_y, a_x are the shift. Windows come in two ways:

*packed*, for kernels that spend the same time on every window: the block that the map's far end cuts and the one that
its near end cuts are one line of two parts, as if the map were rolled, so there are as few windows as can be;
*cut*, for kernels that walk what there is: each window is the line of those of its positions that lie in the map.
"""

import triton
import triton.language as tl


@triton.jit
def _along(n, a, W: tl.constexpr, GRID: tl.constexpr):
    """(windows along an axis that are all alike and come first, all windows along it, kinds of windows along it).

    Blocks that lie in the map are alike, each of the others (two at most) is a kind of its own. In a grid the last few
    lack a position, and are a kind.
    """
    count = tl.cdiv(n, W)
    if GRID:
        alike = n - (tl.cdiv(n, count) - 1) * count
        return alike, count, 1 + (count > alike).to(tl.int32)
    alike = tl.maximum(n - a, 0) // W
    return alike, count, (alike > 0).to(tl.int32) + count - alike


@triton.jit
def _kind(e, alike, count, GRID: tl.constexpr):
    """(first, how many) of the windows of the e-th kind along an axis."""
    some = (alike > 0).to(tl.int32)
    first = (e == 0) & (alike > 0)
    others = 1
    if GRID:
        others = count - alike
    return tl.where(first, 0, alike + e - some), tl.where(first, alike, others)


@triton.jit
def packed_kinds(height, width, a_y, a_x, P: tl.constexpr):
    alike_y, count_y, kinds_y = _along(height, a_y, P[0], P[2])
    alike_x, count_x, kinds_x = _along(width, a_x, P[1], P[2])
    return kinds_y * kinds_x


@triton.jit
def packed_kind(kind, height, width, a_y, a_x, P: tl.constexpr):
    alike_y, count_y, kinds_y = _along(height, a_y, P[0], P[2])
    alike_x, count_x, kinds_x = _along(width, a_x, P[1], P[2])
    first_y, n_y = _kind(kind // kinds_x, alike_y, count_y, P[2])
    first_x, n_x = _kind(kind % kinds_x, alike_x, count_x, P[2])
    return first_y * count_x + n_y * first_x, n_y * n_x, (first_y, first_x, n_x, count_y, count_x)


@triton.jit
def packed_pick(r, h, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return _packed(h[0] + r // h[2], h[1] + r % h[2], h[3], h[4], height, width, a_y, a_x, P)


@triton.jit
def packed_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    n_x = tl.cdiv(width, P[1])
    return _packed(t // n_x, t % n_x, tl.cdiv(height, P[0]), n_x, height, width, a_y, a_x, P)


@triton.jit
def _packed(w_y, w_x, n_y, n_x, height, width, a_y, a_x, P: tl.constexpr):
    """The window of row w_y and column w_x among n_y x n_x."""
    N: tl.constexpr = P[0] * P[1]
    if P[2]:
        return 0, 0, 1, N, (w_y, w_x, n_y, n_x, height, width)
    else:
        return 0, 0, 1, N, (w_y * P[0] + a_y, w_x * P[1] + a_x, n_y * P[0], n_x * P[1], height, width)


@triton.jit
def packed_place(i, j, g, P: tl.constexpr):
    if P[2]:
        return g[0] + j // P[1] * g[2], g[1] + j % P[1] * g[3]
    y = g[0] + j // P[1]
    x = g[1] + j % P[1]
    return tl.where(y >= g[2], y - g[2], y), tl.where(x >= g[3], x - g[3], x)


@triton.jit
def packed_part(i, j, g, P: tl.constexpr):
    y, x = packed_place(i, j, g, P)
    part = y * 0
    if not P[2]:
        part = (g[0] + j // P[1] >= g[2]).to(tl.int32) * 2 + (g[1] + j % P[1] >= g[3]).to(tl.int32)
    return tl.where((y >= g[4]) | (x >= g[5]), -1, part)


@triton.jit
def own(i, j, g, P: tl.constexpr):
    """The place of a position in the one window of queries that all windows share."""
    return j // P[1], j % P[1]


@triton.jit
def pair_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """Offset into the bias [heads, N, N] of whole windows; none lies outside, not even that of a tile's padding."""
    N: tl.constexpr = P[0] * P[1]
    return tl.minimum(k_j, N - 1) + (head * N + tl.minimum(q_j, N - 1)) * N


@triton.jit
def _displaced(first, step, q_y, q_x, k_y, k_x, P: tl.constexpr):
    """Offset into the table of one head, [2 P_y - 1, 2 P_x - 1] from ``first`` on in steps: query minus key."""
    W: tl.constexpr = 2 * P[1] - 1
    centre = first + ((P[0] - 1) * W + P[1] - 1) * step
    return ((q_y * W + q_x) * step + centre) - (k_y * W + k_x) * step


@triton.jit
def table_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """As ``pair_offset``, into a table of relative positions [heads, 2 P_y - 1, 2 P_x - 1]."""
    q_n = tl.minimum(q_j, P[0] * P[1] - 1)
    k_n = tl.minimum(k_j, P[0] * P[1] - 1)
    first = head * ((2 * P[0] - 1) * (2 * P[1] - 1))
    return _displaced(first, 1, q_n // P[1], q_n % P[1], k_n // P[1], k_n % P[1], P)


@triton.jit
def heads_last_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """As ``table_offset``, into a table that lies as [2 P_y - 1, 2 P_x - 1, heads], as timm's models keep it."""
    q_n = tl.minimum(q_j, P[0] * P[1] - 1)
    k_n = tl.minimum(k_j, P[0] * P[1] - 1)
    heads = table // ((2 * P[0] - 1) * (2 * P[1] - 1))
    return _displaced(head, heads, q_n // P[1], q_n % P[1], k_n // P[1], k_n % P[1], P)


@triton.jit
def cut_locate(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    """One tile of a cut window. ``g`` goes on with the columns that are left of it, and how far into the whole window
    they start."""
    PER: tl.constexpr = (P[0] * P[1] + TW - 1) // TW
    w = t // PER
    if P[2]:
        step_y = tl.cdiv(height, P[0])
        step_x = tl.cdiv(width, P[1])
        first_y = w // step_x
        first_x = w % step_x
        rows = tl.cdiv(height - first_y, step_y)
        columns = tl.cdiv(width - first_x, step_x)
        return 0, t % PER * TW, 1, rows * columns, (first_y, first_x, step_y, step_x, columns, 0, 0)
    n_x = tl.cdiv(width - a_x, P[1]) + (a_x > 0).to(tl.int32)
    start_y = a_y + (w // n_x - (a_y > 0).to(tl.int32)) * P[0]
    start_x = a_x + (w % n_x - (a_x > 0).to(tl.int32)) * P[1]
    lo_y = tl.maximum(-start_y, 0)
    lo_x = tl.maximum(-start_x, 0)
    rows = tl.minimum(P[0], height - start_y) - lo_y
    columns = tl.minimum(P[1], width - start_x) - lo_x
    return 0, t % PER * TW, 1, rows * columns, (start_y + lo_y, start_x + lo_x, 1, 1, columns, lo_y, lo_x)


@triton.jit
def cut_place(i, j, g, P: tl.constexpr):
    return g[0] + j // g[4] * g[2], g[1] + j % g[4] * g[3]


@triton.jit
def cut_own(i, j, g, P: tl.constexpr):
    """As ``own``, of cut windows."""
    return g[5] + j // g[4], g[6] + j % g[4]


@triton.jit
def cut_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, 1, 0, n_j


@triton.jit
def in_line(q_i, q_j, k_i, k_j, n_i, n_j, P: tl.constexpr):
    """A chunk of keys may reach beyond the line; queries that do are ruled out by their sums."""
    return k_j < n_j


@triton.jit
def cut_pair_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """As ``pair_offset``, of cut windows."""
    N: tl.constexpr = P[0] * P[1]
    q_n = (g[5] + q_j // g[4]) * P[1] + g[6] + q_j % g[4]
    k_n = (g[5] + k_j // g[4]) * P[1] + g[6] + k_j % g[4]
    return k_n + (head * N + q_n) * N


@triton.jit
def cut_table_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """As ``table_offset``, of cut windows: how far into the whole window they start falls out."""
    first = head * ((2 * P[0] - 1) * (2 * P[1] - 1))
    return _displaced(first, 1, q_j // g[4], q_j % g[4], k_j // g[4], k_j % g[4], P)


@triton.jit
def cut_heads_last_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """As ``heads_last_offset``, of cut windows."""
    heads = table // ((2 * P[0] - 1) * (2 * P[1] - 1))
    return _displaced(head, heads, q_j // g[4], q_j % g[4], k_j // g[4], k_j % g[4], P)


@triton.jit
def table_cell(d, m, P: tl.constexpr, T: tl.constexpr):
    """For ``fold_bias``: the pair among T x T whose query is position m and whose entry of the table is d."""
    W: tl.constexpr = 2 * P[1] - 1
    k_y = m // P[1] - (d // W - (P[0] - 1))
    k_x = m % P[1] - (d % W - (P[1] - 1))
    ok = (m < P[0] * P[1]) & (k_y >= 0) & (k_y < P[0]) & (k_x >= 0) & (k_x < P[1])
    return m * T + k_y * P[1] + k_x, ok
