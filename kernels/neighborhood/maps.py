"""Index maps of neighborhood attention for the tile engine (``kernels/_attend.py`` says what each one answers).

The space of a tile is one dilation group: the positions ``g + dilation * i``. ``P`` is (kernel rows, kernel columns,
stride rows, stride columns, rows causal, columns causal, whether there is a bias).
"""

import triton
import triton.language as tl

BEYOND = tl.constexpr(1 << 30)  # every key is before it


@triton.jit
def window_start(i, n, K: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """First key of the window of query i in a group of n: the window of its leader, shifted inside at the borders.

    Causal (C): the leader is the last of its stride, its window ends at it, and the group's start cuts it short.
    """
    if C:
        if S > 1:
            i = (i // S) * S + S - 1
        return tl.maximum(tl.minimum(i, n - 1) - (K - 1), 0)
    if S > 1:
        i = tl.minimum((i // S) * S + S // 2, n - 1)
    return tl.minimum(tl.maximum(i - K // 2, 0), n - K)


@triton.jit
def _last_reader(k, n, K: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """Last query whose window starts at or before key k."""
    if C:
        inside = ((k + K - S) // S) * S + S - 1
        return tl.where(k >= n - K, n - 1, tl.minimum(inside, n - 1))
    inside = ((k + K // 2 - S // 2) // S) * S + S - 1
    return tl.where(k >= n - K, n - 1, tl.minimum(inside, n - 1))


@triton.jit
def _first_reader(k, n, K: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """First query whose window ends at or after key k."""
    if C:
        return k
    leader = k - K + 1 + K // 2
    inside = ((tl.maximum(leader - S // 2, 0) + S - 1) // S) * S
    return tl.where(k < K, 0, tl.minimum(inside, n - 1))


@triton.jit
def locate(t, height, width, dil_y, dil_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    per_y = tl.cdiv(tl.cdiv(height, dil_y), TH)
    per_x = tl.cdiv(tl.cdiv(width, dil_x), TW)
    t_x = t % (per_x * dil_x)
    t_y = t // (per_x * dil_x)
    g_y = t_y // per_y
    g_x = t_x // per_x
    n_i = (height - g_y + dil_y - 1) // dil_y
    n_j = (width - g_x + dil_x - 1) // dil_x
    return (t_y % per_y) * TH, (t_x % per_x) * TW, n_i, n_j, (g_y, g_x, dil_y, dil_x)


@triton.jit
def place(i, j, g, P: tl.constexpr):
    return g[0] + i * g[2], g[1] + j * g[3]


@triton.jit
def key_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    i_hi = window_start(tl.minimum(i0 + TH, n_i) - 1, n_i, P[0], P[2], P[4]) + P[0]
    j_hi = window_start(tl.minimum(j0 + TW, n_j) - 1, n_j, P[1], P[3], P[5]) + P[1]
    if P[4]:  # none sees beyond itself
        i_hi = tl.minimum(i0 + TH, n_i)
    if P[5]:
        j_hi = tl.minimum(j0 + TW, n_j)
    return window_start(i0, n_i, P[0], P[2], P[4]), i_hi, window_start(j0, n_j, P[1], P[3], P[5]), j_hi


@triton.jit
def query_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    i_hi = _last_reader(tl.minimum(i0 + TH, n_i) - 1, n_i, P[0], P[2], P[4]) + 1
    j_hi = _last_reader(tl.minimum(j0 + TW, n_j) - 1, n_j, P[1], P[3], P[5]) + 1
    return _first_reader(i0, n_i, P[0], P[2], P[4]), i_hi, _first_reader(j0, n_j, P[1], P[3], P[5]), j_hi


@triton.jit
def _within(q, k, start, K: tl.constexpr, C: tl.constexpr):
    # one unsigned comparison serves both ends of the window
    if C:
        return (k - start).to(tl.uint32, bitcast=True) <= (q - start).to(tl.uint32, bitcast=True)
    return (k - start).to(tl.uint32, bitcast=True) < K


@triton.jit
def _sees(q, k, n, K: tl.constexpr, S: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr, TWO: tl.constexpr):
    start = window_start(q, n, K, S, C)
    if BIAS:  # what a tile holds beyond the map sees nothing: its biases would lie outside the table
        start = tl.where(q < n, start, BEYOND)
        q = tl.where(q < n, q, BEYOND)
    if TWO and not C:
        return (k >= start) & (k < start + K)
    return _within(q, k, start, K, C)


@triton.jit
def neighbors(q_i, q_j, k_i, k_j, n_i, n_j, P: tl.constexpr):
    # of i < K and j < K the compiler makes i | j < K where K is a power of two: two instructions a score more
    TWO: tl.constexpr = P[1] & (P[1] - 1) == 0
    return _sees(q_i, k_i, n_i, P[0], P[2], P[4], P[6], False) & _sees(q_j, k_j, n_j, P[1], P[3], P[5], P[6], TWO)


@triton.jit
def table_offset(head, i, j, P: tl.constexpr):
    """Offset into the relative table [heads, 2 K_y - 1, 2 K_x - 1] of a key (i, j) from its query."""
    W: tl.constexpr = 2 * P[1] - 1
    return (head * (2 * P[0] - 1) + P[0] - 1) * W + P[1] - 1 + i * W + j


@triton.jit
def pair_offset(head, q_i, q_j, k_i, k_j, g, P: tl.constexpr, table):
    """The same of a query and a key, as closed windows ask."""
    return table_offset(head, k_i - q_i, k_j - q_j, P)
