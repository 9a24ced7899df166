"""Index maps of halo attention for the tile engine (``kernels/_attend.py`` says what each one answers).

``P`` is (block rows, block columns, halo rows, halo columns, stride rows, stride columns, E, F, D): E columns hold a
window's rows or columns, F the displacements along an axis that occur. The engine's map is that of the queries; the
run-time numbers a_y, a_x are the size of the keys' map. Queries of a block, and keys of its window, are lines in
reading order: i is 0 and j the number. The dk/dv pass has tiles of the keys' map, and i counts the blocks that see the
tile. ``g`` is (block row, block column, rows and columns of queries, rows and columns of keys); in the dk/dv pass it is
the first block that sees the tile, and the rows and columns of such blocks follow.
"""

import triton
import triton.language as tl


@triton.jit
def query_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    QUERIES: tl.constexpr = (P[0] // P[4]) * (P[1] // P[5])
    PER: tl.constexpr = (QUERIES + TW - 1) // TW
    across = tl.cdiv(a_x, P[1])
    block = t // PER
    return 0, t % PER * TW, 1, QUERIES, (block // across, block % across, height, width, a_y, a_x)


@triton.jit
def query_place(i, j, g, P: tl.constexpr):
    ROWS: tl.constexpr = P[0] // P[4]
    COLUMNS: tl.constexpr = P[1] // P[5]
    return g[0] * ROWS + j // COLUMNS, g[1] * COLUMNS + j % COLUMNS


@triton.jit
def window_place(i, j, g, P: tl.constexpr):
    WIDE: tl.constexpr = P[1] + 2 * P[3]
    return g[0] * P[0] - P[2] + j // WIDE, g[1] * P[1] - P[3] + j % WIDE


@triton.jit
def _inside(y, x, height, width):
    # one unsigned comparison serves both ends
    return (y.to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True)) & (
        x.to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)
    )


@triton.jit
def query_at(y, x, g, P: tl.constexpr):
    return _inside(y, x, g[2], g[3])


@triton.jit
def key_at(y, x, g, P: tl.constexpr):
    return _inside(y, x, g[4], g[5])


@triton.jit
def window_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, 1, 0, (P[0] + 2 * P[2]) * (P[1] + 2 * P[3])


@triton.jit
def _shift(n, T: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr):
    """How far the first tile of keys starts before the map: with blocks' borders in the middle of tiles, a tile is seen
    by two blocks at most; where the map has hardly any borders, more tiles would cost more."""
    if BLOCK % T == 0 and 2 * HALO <= T:
        return tl.where(n > 2 * BLOCK, T // 2, 0)
    else:
        return 0


@triton.jit
def _readers(i0, n, T: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr):
    """(first block that sees any key of the tile, how many do)."""
    first = tl.maximum(tl.maximum(i0, 0) - HALO, 0) // BLOCK
    last = tl.minimum((tl.minimum(i0 + T, n) - 1 + HALO) // BLOCK, tl.cdiv(n, BLOCK) - 1)
    return first, last - first + 1


@triton.jit
def key_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    shift_x = _shift(a_x, TW, P[1], P[3])
    across = tl.cdiv(a_x + shift_x, TW)
    i0 = t // across * TH - _shift(a_y, TH, P[0], P[2])
    j0 = t % across * TW - shift_x
    first_y, many_y = _readers(i0, a_y, TH, P[0], P[2])
    first_x, many_x = _readers(j0, a_x, TW, P[1], P[3])
    return i0, j0, a_y, a_x, (first_y, first_x, height, width, a_y, a_x, many_y, many_x)


@triton.jit
def key_place(i, j, g, P: tl.constexpr):
    return i, j


@triton.jit
def reader_place(i, j, g, P: tl.constexpr):
    """The j-th query of the i-th block that sees a tile of keys."""
    ROWS: tl.constexpr = P[0] // P[4]
    COLUMNS: tl.constexpr = P[1] // P[5]
    return (g[0] + i // g[7]) * ROWS + j // COLUMNS, (g[1] + i % g[7]) * COLUMNS + j % COLUMNS


@triton.jit
def reader_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, g[6] * g[7], 0, (P[0] // P[4]) * (P[1] // P[5])
