"""Neighborhood attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward.

An axis of `n` positions with dilation `d` falls into `d` groups, position `p` being number `p // d` of group `p % d`.
Attention stays inside a group. A group of `L` numbers has windows of `k` consecutive numbers: with stride `s` query `i`
takes the window of its leader `min(i // s * s + s // 2, L - 1)`, centred on the leader and shifted inwards at the ends.
Along a causal axis the leader is the last
of its stride, the window ends at it, cut short at the group's start, and a query sees none of it beyond itself.
On a map the rows' windows and the columns' windows multiply to rectangles. See README.md for the maths.

A gather per query would be slow, and a mask over the whole map quadratic. So queries are cut into tiles, the keys that
any query of a tile sees are a box only `k - s` wider than the tile, and a tile attends to its box under a mask: plain
batched matrix products, linear in H * W. A small map is one tile and its own box, and nothing is gathered at all.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry

CHUNK = 1 << 26  # logits that are held at a time: 256 MB


class AxisTiles(NamedTuple):
    """How one axis is cut: N tiles of T queries, each with a box of X keys. Positions count along the map's axis."""

    queries: Tensor | None   # [N, T] positions of the queries; None: the axis in order is the tiles in order
    keys: Tensor | None      # [N, X] positions of the keys;    None: likewise
    inverse: Tensor | None   # [n] where in the flattened [N * T] each position is;  None: likewise
    mask: Tensor             # [N, T, X] the query sees the key
    relative: Tensor         # [N, T, X] key minus query, in numbers of the group, plus k - 1: the table's index
    dilation: int


def tile_size(n: int, k: int, d: int, s: int) -> int | None:
    """Queries a tile takes along an axis; None for "one tile a group", where the groups are small.

    About half a window: larger tiles look at more keys in vain, smaller ones gather more of them. A multiple of the
    stride, so that no group of queries that share a window is cut. An `n` known at run time only is always cut.
    """
    if isinstance(n, int) and -(-n // d) <= max(16, 2 * k):
        return None
    return s * max(1, round(max(4, k // 2) / s))


def axis_tiles(n: int, k: int, d: int, s: int, tile: int | None, device: torch.device,
               causal: bool = False) -> AxisTiles:
    """Cut an axis of `n` positions into tiles of `tile` queries (None: one tile a group), by arithmetic on aranges."""
    longest = (n + d - 1) // d                               # the longest group's length; others may be one shorter
    whole = tile is None
    if whole:
        tile, box, count = longest, longest, 1
    else:
        box, count = tile - s + k, (longest + tile - 1) // tile
        if not isinstance(n, int):                           # never 1: compilers would make that a graph of its own
            count = (longest + tile - 2) // tile + 1
    index = torch.arange(d * count, device=device).unsqueeze(1)
    group = index // count                                   # [N, 1]
    first = (index - group * count) * tile                   # [N, 1]
    length = (n - group + d - 1) // d                        # [N, 1]
    query = first + torch.arange(tile, device=device)        # [N, T]
    query = torch.minimum(query, length - 1)                 # past the group's end: its last query again, dropped later
    leader = torch.minimum(query // s * s + (s - 1 if causal else s // 2), length - 1)
    start = (leader - k + 1).clamp(min=0) if causal else torch.minimum((leader - k // 2).clamp(min=0), length - k)
    key = start[:, :1] + torch.arange(box, device=device)    # [N, X]; the first query's window starts first
    start, seen = start.unsqueeze(2), key.unsqueeze(1)       # [N, T, 1], [N, 1, X]
    mask = (seen >= start) & (seen <= query.unsqueeze(2) if causal else seen < start + k)
    relative = (seen - query.unsqueeze(2) + (k - 1)).clamp(0, 2 * k - 2)
    queries = keys = inverse = None
    if not whole or n % d:                                   # else a reshape does it
        position = torch.arange(n, device=device)
        queries, keys = query * d + group, (key * d + group).clamp(max=n - 1)
        inverse = position % d * (count * tile) + position // d
    return AxisTiles(queries, keys, inverse, mask, relative, d)


def _cut(x: Tensor, dim: int, positions: Tensor | None, dilation: int) -> Tensor:
    """Replace axis `dim` by two: tiles, and positions within the tile."""
    if positions is None:
        return x.unflatten(dim, (-1, dilation)).transpose(dim, dim + 1)
    return x[(slice(None),) * dim + (positions,)]


def _join(x: Tensor, dim: int, axis: AxisTiles) -> Tensor:
    """Undo `_cut` for queries."""
    if axis.inverse is None:
        return x.transpose(dim, dim + 1).flatten(dim, dim + 1)
    return x.flatten(dim, dim + 1).index_select(dim, axis.inverse)


def _pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """[M, S, Y] and [N, T, X] as [M, 1, S, 1, Y, 1] and [1, N, 1, T, 1, X]: they broadcast to every pair of a tile."""
    return rows[:, None, :, None, :, None], columns[None, :, None, :, None, :]


def _logit_offsets(bias: Tensor | None, rows: AxisTiles, columns: AxisTiles, dtype: torch.dtype) -> Tensor:
    """What is added to the logits: the relative bias, and minus infinity where a query does not see a key.

    Returns [heads or 1, M, N, S * T, Y * X] for M x N tiles of S x T queries and boxes of Y x X keys.
    """
    seen_y, seen_x = _pairs(rows.mask, columns.mask)
    hidden = ~(seen_y & seen_x)                                                       # [M, N, S, T, Y, X]
    if bias is None:
        table = torch.zeros((), dtype=dtype, device=hidden.device).expand(1, *hidden.shape)
    else:
        y, x = rows.relative, columns.relative
        table = bias.to(dtype)[:, y][..., x]                                          # [heads, M, S, Y, N, T, X]
        table = table.permute(0, 1, 4, 2, 5, 3, 6)                                    # [heads, M, N, S, T, Y, X]
    return table.masked_fill(hidden, float("-inf")).flatten(5, 6).flatten(3, 4)


def _chunks(rows: AxisTiles, logits_a_tile: int) -> list[AxisTiles]:
    """`rows` in runs of tiles that need CHUNK logits at most, or one tile, so that a large map needs little memory."""
    many = rows.queries is not None and isinstance(rows.mask.shape[0] * logits_a_tile, int)
    if not many or rows.mask.shape[0] * logits_a_tile <= CHUNK:
        return [rows]
    size = max(1, CHUNK // logits_a_tile)
    parts = (x.split(size) for x in (rows.queries, rows.keys, rows.mask, rows.relative))
    return [AxisTiles(queries, keys, rows.inverse, mask, relative, rows.dilation)
            for queries, keys, mask, relative in zip(*parts)]


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float,
                           extra_k: Tensor | None = None, extra_v: Tensor | None = None) -> Tensor:
    """Neighborhood attention of `q`, `k` [B, H, W, heads, D] and `v` [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `bias`: [heads, 2 * kernel_h - 1, 2 * kernel_w - 1] or None. `extra_k` [B, T, heads, D] and `extra_v`
    [B, T, heads, Dv]: tokens that every query attends to besides, in the same softmax. Differentiable any number of
    times. Computes in float32, or float64 for float64 inputs, and returns q's dtype. Arguments must have been checked.
    """
    batch, height, width, heads, _ = q.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows, columns = (
        axis_tiles(n, kernel, d, s, tile_size(n, kernel, d, s), q.device, causal)
        for n, kernel, d, s, causal in zip((height, width), *geometry, strict=True))

    def tiles(x: Tensor, y: Tensor | None, x_: Tensor | None) -> Tensor:
        x = _cut(_cut(x.to(compute), 2, x_, columns.dilation), 1, y, rows.dilation)   # [B, M, S, N, T, heads, D]
        return x.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5)                           # [B, heads, M, N, S * T, D]

    if extra_k is not None:                                                           # [B, heads, 1, 1, T, D]
        more_keys, more_values = (x.to(compute).transpose(1, 2)[:, :, None, None] for x in (extra_k, extra_v))

    def attend(rows: AxisTiles) -> Tensor:
        queries = tiles(q, rows.queries, columns.queries) * scale
        keys, values = (tiles(x, rows.keys, columns.keys) for x in (k, v))
        logits = queries @ keys.transpose(-1, -2)                                     # [B, heads, M, N, S * T, Y * X]
        logits = logits + _logit_offsets(bias, rows, columns, compute)
        if extra_k is None:
            out = logits.softmax(-1) @ values                                         # [B, heads, M, N, S * T, Dv]
        else:
            seen = logits.shape[-1]
            weights = torch.cat((logits, queries @ more_keys.transpose(-1, -2)), -1).softmax(-1)
            out = weights[..., :seen] @ values + weights[..., seen:] @ more_values
        out = out.unflatten(4, (rows.mask.shape[1], columns.mask.shape[1]))           # [B, heads, M, N, S, T, Dv]
        return out.permute(0, 2, 4, 3, 5, 1, 6)                                       # [B, M, S, N, T, heads, Dv]

    logits_a_tile = batch * heads * rows.mask[0].numel() * columns.mask.numel()
    if extra_k is not None:
        logits_a_tile += batch * heads * rows.mask.shape[1] * columns.mask[..., 0].numel() * extra_k.shape[1]
    out = [attend(chunk) for chunk in _chunks(rows, logits_a_tile)]
    out = torch.cat(out, 1) if len(out) > 1 else out[0]
    return _join(_join(out, 3, columns), 1, rows).to(q.dtype).contiguous()
