"""Window attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward.

An axis of `n` positions is cut into windows of `w`. Blocks start at `shift + w * i` for every whole number i, so that
with a shift the first block begins before the map; a grid's window g holds the positions `g + distance * i`, where
`distance = ceil(n / w)`. What lies outside the map is no key, and no query either. See README.md for the maths.
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad

from .._arguments import ceil_div
from .geometry import Geometry
from .relative import lay_out

CHUNK = 1 << 26  # logits that are held at a time: 256 MB


def _axis(n: int, axis: int, geometry: Geometry, device: torch.device) -> Tensor:
    """Positions of the windows along an axis of `n`, [windows, positions]; some may lie outside of 0..n - 1."""
    window, count = geometry.window[axis], _count(n, axis, geometry)
    i, j = torch.arange(count, device=device)[:, None], torch.arange(window, device=device)
    return j * count + i if geometry.grid else i * window + j - _before(axis, geometry)


def place(n: int, axis: int, geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """The window of each of `n` positions of an axis, and its number there."""
    position = torch.arange(n, device=device)
    if geometry.grid:
        count = _count(n, axis, geometry)
        number = position // count
        return position - number * count, number
    position = position + _before(axis, geometry)
    return position // geometry.window[axis], position % geometry.window[axis]


def _before(axis: int, geometry: Geometry) -> int:
    """How far the first block begins before the map."""
    return (geometry.window[axis] - geometry.shift[axis]) % geometry.window[axis]


def _count(n: int, axis: int, geometry: Geometry) -> int:
    """How many windows an axis of `n` has."""
    return ceil_div(n + _before(axis, geometry), geometry.window[axis])


def partition(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, M, N, heads, Y * X, D]: M x N windows of Y x X; anything finite outside the map."""
    height, width = x.shape[1:3]
    if not _static(height, width):       # of symbolic sizes padding would have to be known to be none or some
        rows, columns = (_axis(n, axis, geometry, x.device).clamp(0, n - 1) for axis, n in enumerate((height, width)))
        x = x[:, rows][:, :, :, columns].permute(0, 1, 3, 5, 2, 4, 6)
        return _copied(x).flatten(4, 5)
    x = _cut(x, geometry)
    return (x.permute(0, 2, 4, 5, 1, 3, 6) if geometry.grid else x.permute(0, 1, 3, 5, 2, 4, 6)).flatten(4, 5)


def sum_windows(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, Y, X, heads, D]: the sum over an image's windows of Y x X."""
    return _cut(x, geometry).sum((2, 4) if geometry.grid else (1, 3))


def _cut(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, M, Y, N, X, heads, D], or [B, Y, M, X, N, heads, D] of grids; a view where it can."""
    (height, width), (window_h, window_w) = x.shape[1:3], geometry.window
    (count_h, before_h), (count_w, before_w) = (
        (_count(n, axis, geometry), _before(axis, geometry)) for axis, n in enumerate((height, width))
    )
    if not geometry.is_whole(height, width):
        after_h, after_w = count_h * window_h - before_h - height, count_w * window_w - before_w - width
        x = pad(x, (0, 0, 0, 0, before_w, after_w, before_h, after_h))
    rows, columns = ((window_h, count_h), (window_w, count_w)) if geometry.grid else (
        (count_h, window_h), (count_w, window_w))  # fmt: skip
    return x.unflatten(2, columns).unflatten(1, rows)


def reverse(x: Tensor, height: int, width: int, geometry: Geometry) -> Tensor:
    """Undo `partition`."""
    x = x.unflatten(4, geometry.window)                                               # [B, M, N, heads, Y, X, D]
    before_h, before_w = (_before(axis, geometry) for axis in (0, 1))
    if not _static(height, width):
        # one axis after the other, contiguous in between, or torch compares symbolic strides
        (m, i), (n, j) = (place(size, axis, geometry, x.device) for axis, size in enumerate((height, width)))
        x = _copied(x.permute(0, 1, 4, 2, 5, 3, 6))[:, m, i]                          # [B, H, N, X, heads, D]
        return _copied(x)[:, :, n, j]
    x = x.permute(0, 4, 1, 5, 2, 3, 6) if geometry.grid else x.permute(0, 1, 4, 2, 5, 3, 6)
    x = x.flatten(3, 4).flatten(1, 2)
    return x[:, before_h : before_h + height, before_w : before_w + width]


def _copied(x: Tensor) -> Tensor:
    """Contiguous, without asking whether it was: the answer would tie a graph to how many windows there are."""
    return x.clone(memory_format=torch.contiguous_format)


def _static(height: int, width: int) -> bool:
    return isinstance(height, int) and isinstance(width, int)


def _hidden(height: int, width: int, geometry: Geometry, device: torch.device) -> Tensor | None:
    """Which keys lie outside the map, [M, N, 1, 1, Y * X]; None where none can."""
    if _static(height, width) and geometry.is_whole(height, width):
        return None
    positions = (_axis(n, axis, geometry, device) for axis, n in enumerate((height, width)))
    rows, columns = ((p < 0) | (p >= n) for p, n in zip(positions, (height, width)))
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(2)[:, :, None, None]


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float,
                     dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Window attention of `k` [B, H, W, heads, D] and `v` [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `q`: [B, H, W, heads, D], or [B, Y, X, heads, D] shared by all windows of Y x X. `bias`: [heads, Y * X, Y * X], a
    table [heads, 2 Y - 1, 2 X - 1], or None. Differentiable any number of times. Computes in float32, or float64 for
    float64 inputs, and returns q's dtype. Arguments must have been checked. `dropout`: rate at which attention
    probabilities are dropped, for layers that train with it.
    """
    batch, height, width, heads, _ = k.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    shared = q.shape[1:3] != k.shape[1:3]
    keys, values = (partition(x.to(compute), geometry) for x in (k, v))               # [B, M, N, heads, Y * X, D]
    queries = q.to(compute) * scale
    queries = queries.flatten(1, 2).transpose(1, 2)[:, None, None] if shared else partition(queries, geometry)
    hidden = _hidden(height, width, geometry, q.device)
    if bias is not None and geometry.is_table(bias.shape):
        bias = lay_out(bias, geometry.window)

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
