"""Window attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward.

An axis of `n` positions is cut into windows of `w`. Blocks start at `shift + w * i` for every whole number i, so that
with a shift the first block begins before the map; a grid's window g holds the positions `g + distance * i`, where
`distance = ceil(n / w)`. What lies outside the map is no key, and no query either. See README.md for the maths.
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad

from .geometry import Geometry, ceil_div

CHUNK = 1 << 26  # logits that are held at a time: 256 MB


def partition(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, M, N, heads, Y * X, D]: M x N windows of Y x X; zeros outside the map."""
    (window_h, window_w), (before_h, before_w) = geometry.window, _before(geometry)
    rows, columns = _counts(x.shape[1], x.shape[2], geometry)
    after_h, after_w = rows * window_h - before_h - x.shape[1], columns * window_w - before_w - x.shape[2]
    x = pad(x, (0, 0, 0, 0, before_w, after_w, before_h, after_h))
    if geometry.grid:
        x = x.unflatten(2, (window_w, columns)).unflatten(1, (window_h, rows))        # [B, Y, M, X, N, heads, D]
        x = x.permute(0, 2, 4, 5, 1, 3, 6)
    else:
        x = x.unflatten(2, (columns, window_w)).unflatten(1, (rows, window_h))        # [B, M, Y, N, X, heads, D]
        x = x.permute(0, 1, 3, 5, 2, 4, 6)
    return x.flatten(4, 5)


def reverse(x: Tensor, height: int, width: int, geometry: Geometry) -> Tensor:
    """Undo `partition`."""
    (window_h, window_w), (before_h, before_w) = geometry.window, _before(geometry)
    x = x.unflatten(4, (window_h, window_w))                                          # [B, M, N, heads, Y, X, D]
    x = x.permute(0, 4, 1, 5, 2, 3, 6) if geometry.grid else x.permute(0, 1, 4, 2, 5, 3, 6)
    x = x.flatten(3, 4).flatten(1, 2)
    return x[:, before_h : before_h + height, before_w : before_w + width]


def _before(geometry: Geometry) -> tuple[int, int]:
    """How far the first block begins before the map."""
    rows, columns = ((w - s) % w for w, s in zip(geometry.window, geometry.shift))
    return rows, columns


def _counts(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """How many windows an axis has."""
    rows, columns = (
        ceil_div(n + before, w) for n, before, w in zip((height, width), _before(geometry), geometry.window)
    )
    return rows, columns


def _hidden(height: int, width: int, geometry: Geometry, device: torch.device) -> Tensor | None:
    """Which keys lie outside the map, [M, N, 1, 1, Y * X]; None where none can."""
    if isinstance(height, int) and isinstance(width, int) and geometry.is_whole(height, width):
        return None
    outside = []
    counts = _counts(height, width, geometry)
    for n, count, w, before in zip((height, width), counts, geometry.window, _before(geometry)):
        position = torch.arange(count * w, device=device)
        out = (position < before) | (position >= before + n)
        outside.append(out.unflatten(0, (w, count)).t() if geometry.grid else out.unflatten(0, (count, w)))
    rows, columns = outside
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(2)[:, :, None, None]


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float,
                     dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Window attention of `k` [B, H, W, heads, D] and `v` [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `q`: [B, H, W, heads, D], or [B, Y, X, heads, D] shared by all windows of Y x X. `bias`: [heads, Y * X, Y * X] or
    None. Differentiable any number of times. Computes in float32, or float64 for float64 inputs, and returns q's dtype.
    Arguments must have been checked. `dropout`: rate at which attention probabilities are dropped, for layers that
    train with it.
    """
    batch, height, width, heads, _ = k.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    shared = q.shape[1:3] != k.shape[1:3]
    keys, values = (partition(x.to(compute), geometry) for x in (k, v))               # [B, M, N, heads, Y * X, D]
    queries = q.to(compute) * scale
    queries = queries.flatten(1, 2).transpose(1, 2)[:, None, None] if shared else partition(queries, geometry)
    hidden = _hidden(height, width, geometry, q.device)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
        logits = queries @ keys.transpose(-1, -2)                                     # [B, M, N, heads, Y * X, Y * X]
        if bias is not None:
            logits = logits + bias.to(compute)
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        weights = logits.softmax(-1)
        return (drop(weights, dropout) if dropout else weights) @ values

    rows = _rows_a_chunk(batch * heads * width * geometry.positions * geometry.window[0])
    if not isinstance(keys.shape[1], int) or keys.shape[1] <= rows:
        out = attend(queries, keys, values, hidden)
    else:                                                 # a large map needs little memory
        many = keys.shape[1]
        parts = (x.split(rows, 1) for x in (keys, values))
        hiddens = [None] * many if hidden is None else hidden.split(rows)
        asking = [queries] * many if shared else queries.split(rows, 1)
        out = torch.cat([attend(*chunk) for chunk in zip(asking, *parts, hiddens)], 1)
    return reverse(out, height, width, geometry).to(q.dtype).contiguous()


def _rows_a_chunk(logits_a_row: int) -> int:
    """How many rows of windows are computed at a time."""
    return max(1, CHUNK // max(logits_a_row, 1)) if isinstance(logits_a_row, int) else 1 << 30
