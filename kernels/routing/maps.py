"""Index maps of routed attention for the tile engine (``kernels/_attend.py`` says what each one answers).

``P`` is (rows of regions, columns of regions, routes of a region); the run-time numbers a_y, a_x are a region's size.
The space of a tile is one region as a line of tokens in reading order: i is 0 and j the number. What the tile sees is a
line too, the tokens of one listed region after the other. ``g`` is (first row, first column, a_y, a_x, height, width,
the region's number), of which the number gives way to where its list begins; the length of the list follows.

Two lists are read through the engine's ``p_bias``. Of queries: ``routes`` as they are given, [images, regions, routes].
Of keys, which regions route to theirs: for each image 2 numbers a region, where in the lists of this image its own one
begins and how long it is, and then all of them. :func:`invert` writes those.
"""

import triton
import triton.language as tl


@triton.jit
def token_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    tokens = a_y * a_x
    per = tl.cdiv(tokens, TW)
    region = t // per
    y = region // P[1] * a_y
    x = region % P[1] * a_x
    some = ((y < height) & (x < width)).to(tl.int32)  # a region that lies outside the map has no line
    return 0, t % per * TW, some, tokens, (y, x, a_y, a_x, height, width, region)


@triton.jit
def token_place(i, j, g, P: tl.constexpr):
    row = j // g[3]
    return g[0] + row, g[1] + (j - row * g[3])


@triton.jit
def inside(y, x, g, P: tl.constexpr):
    return (y < g[4]) & (x < g[5])


@triton.jit
def routes_of(p, table, b, g, P: tl.constexpr):
    first = (b * (P[0] * P[1]) + g[6]) * P[2]
    return g[0], g[1], g[2], g[3], g[4], g[5], p + first, P[2]


@triton.jit
def readers_of(p, table, b, g, P: tl.constexpr):
    REGIONS: tl.constexpr = P[0] * P[1]
    p += b * (REGIONS * (2 + P[2]))
    first = tl.load(p + 2 * g[6])
    return g[0], g[1], g[2], g[3], g[4], g[5], p + 2 * REGIONS + first, tl.load(p + 2 * g[6] + 1)


@triton.jit
def listed_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    return 0, 1, 0, g[7] * g[2] * g[3]


@triton.jit
def listed_place(i, j, g, P: tl.constexpr):
    tokens = g[2] * g[3]
    number = j // tokens
    region = tl.load(g[6] + tl.minimum(number, g[7] - 1))
    there = (region >= 0) & (region < P[0] * P[1])
    region = tl.where(there, region, 0).to(tl.int32)
    token = j - number * tokens
    row = token // g[3]
    y = region // P[1] * g[2] + row
    return tl.where(there, y, g[4]), region % P[1] * g[3] + (token - row * g[3])


@triton.jit
def invert(p_routes, p_lists, P: tl.constexpr, BLOCK: tl.constexpr):
    """One program a region of an image: finds the regions that route to it, in order, one as often as it does."""
    REGIONS: tl.constexpr = P[0] * P[1]
    COUNT: tl.constexpr = REGIONS * P[2]
    region = tl.program_id(0) % REGIONS
    b = (tl.program_id(0) // REGIONS).to(tl.int64)
    p_routes += b * COUNT
    p_lists += b * (REGIONS * 2 + COUNT)
    first = 0  # of its list: those of the regions before it come first
    for start in range(0, COUNT, BLOCK):
        o = start + tl.arange(0, BLOCK)
        route = tl.load(p_routes + o, mask=o < COUNT, other=-1)
        first += tl.sum(((route >= 0) & (route < region)).to(tl.int32), 0)
    found = 0
    for start in range(0, COUNT, BLOCK):
        o = start + tl.arange(0, BLOCK)
        route = tl.load(p_routes + o, mask=o < COUNT, other=-1)
        mine = (route == region).to(tl.int32)
        place = first + found + tl.cumsum(mine, 0) - mine
        tl.store(p_lists + 2 * REGIONS + place, o // P[2], mask=mine != 0)
        found += tl.sum(mine, 0)
    tl.store(p_lists + 2 * region, first)
    tl.store(p_lists + 2 * region + 1, found)
