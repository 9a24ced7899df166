"""Index maps of routed attention for the tile engine (``kernels/_attend.py`` says what each one answers).

``P`` is (rows of regions, columns of regions, routes of a region, FLAT); the run-time numbers a_y, a_x are a region's
size. The space of a tile is one region as a line of tokens in reading order: i is 0 and j the number. What it sees are
the lines of listed regions: i is the place in the list, j the token; or, where regions are so small that a chunk holds
several and FLAT is 1, one line of all of them. ``g`` is (first row, first column, a_y, a_x, 1 / a_x, height, width, the
region's number); the number gives way to where its list begins, and the length of the list follows. Numbers of regions
that are out of range count as the nearest one, so that nothing outside the map is read.

Two lists are read through the engine's ``p_bias``. Of queries: ``routes`` as they are given, [images, regions, routes].
Of keys, which regions route to theirs: for each image 2 numbers a region, where in the lists of this image its own one
begins and how long it is, and then all of them. :func:`invert` writes those.
"""

import triton
import triton.language as tl


@triton.jit
def _divide(n, inverse):
    """n // d for n in 0..2**22 - 1 and inverse = 1 / d: integers are divided in many times as many instructions."""
    return ((n.to(tl.float32) + 0.5) * inverse).to(tl.int32)


@triton.jit
def token_tile(t, height, width, a_y, a_x, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    tokens = a_y * a_x
    per = tl.cdiv(tokens, TW)
    region = t // per
    y = region // P[1] * a_y
    x = region % P[1] * a_x
    some = ((y < height) & (x < width)).to(tl.int32)  # a region that lies outside the map has no line
    return 0, t % per * TW, some, tokens, (y, x, a_y, a_x, 1.0 / a_x, height, width, region)


@triton.jit
def token_place(i, j, g, P: tl.constexpr):
    row = _divide(j, g[4])
    return g[0] + row, g[1] + (j - row * g[3])


@triton.jit
def inside(y, x, g, P: tl.constexpr):
    return (y < g[5]) & (x < g[6])


@triton.jit
def routes_of(p, table, b, g, P: tl.constexpr):
    first = (b * (P[0] * P[1]) + g[7]) * P[2]
    return g[0], g[1], g[2], g[3], g[4], g[5], g[6], p + first, P[2]


@triton.jit
def readers_of(p, table, b, g, P: tl.constexpr):
    REGIONS: tl.constexpr = P[0] * P[1]
    p += b * (REGIONS * (2 + P[2]))
    first = tl.load(p + 2 * g[7])
    return g[0], g[1], g[2], g[3], g[4], g[5], g[6], p + 2 * REGIONS + first, tl.load(p + 2 * g[7] + 1)


@triton.jit
def listed_span(i0, j0, n_i, n_j, g, TH: tl.constexpr, TW: tl.constexpr, P: tl.constexpr):
    if P[3]:
        return 0, 1, 0, g[8] * g[2] * g[3]
    else:
        return 0, g[8], 0, g[2] * g[3]


@triton.jit
def listed_place(i, j, g, P: tl.constexpr):
    number = i
    token = j
    if P[3]:
        tokens = g[2] * g[3]
        number = tl.minimum(_divide(j, 1.0 / tokens), g[8] - 1)
        token = j - number * tokens
    region = tl.load(g[7] + number)
    region = tl.minimum(tl.maximum(region, 0), P[0] * P[1] - 1).to(tl.int32)
    row = _divide(token, g[4])
    return region // P[1] * g[2] + row, region % P[1] * g[3] + (token - row * g[3])


@triton.jit
def _routes(p, o, P: tl.constexpr):
    """Routes o of an image, -1 behind the last."""
    route = tl.load(p + o, mask=o < P[0] * P[1] * P[2], other=0)
    route = tl.minimum(tl.maximum(route, 0), P[0] * P[1] - 1)
    return tl.where(o < P[0] * P[1] * P[2], route, -1)


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
        route = _routes(p_routes, o, P)
        first += tl.sum(((route >= 0) & (route < region)).to(tl.int32), 0)
    found = 0
    for start in range(0, COUNT, BLOCK):
        o = start + tl.arange(0, BLOCK)
        route = _routes(p_routes, o, P)
        mine = (route == region).to(tl.int32)
        place = first + found + tl.cumsum(mine, 0) - mine
        tl.store(p_lists + 2 * REGIONS + place, o // P[2], mask=mine != 0)
        found += tl.sum(mine, 0)
    tl.store(p_lists + 2 * region, first)
    tl.store(p_lists + 2 * region + 1, found)
