"""Varied window attention in plain PyTorch: the definition, what runs on a CPU, under ONNX and in a double backward.

A map is cut into windows as in window attention, without shifts. The queries of a window attend to as many keys as the
window has positions, which are read from the map at places of the head's and the window's own: the window's positions,
moved and stretched about its centre. Between positions keys and values are interpolated, outside the map they are
zeros, and take their share of the softmax. See README.md for the maths.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from ..window.geometry import Geometry
from ..window.reference import partition, reverse
from ..window.relative import lay_out

CHUNK = 1 << 26  # logits, or interpolated numbers, that are held at a time: 256 MB


def places(sampling: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Where the keys of each window lie: rows [B, M, N, heads, Y] and columns [B, M, N, heads, X] on the map.

    `sampling`: [B, M, N, heads, 4], for each of M x N windows the displacement of its centre, rows and columns, and by
    how much more than 1 its rows and columns are stretched.
    """
    found = []
    for axis, window in enumerate(geometry.window):
        half = (window - 1) / 2
        first = torch.arange(sampling.shape[1 + axis], device=sampling.device) * window
        centre = (first.to(sampling.dtype) + half)[(..., None, None, None) if axis == 0 else (..., None, None)]
        distance = torch.arange(window, device=sampling.device).to(sampling.dtype) - half
        offset, growth = sampling[..., axis, None], sampling[..., 2 + axis, None]
        found.append(centre + offset + (1 + growth) * distance)
    return found[0], found[1]


def _corners(place: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(position, weight) of the positions before and after each place on an axis of `n`; weightless outside of it."""
    place = place.clamp(-1, n)                            # an index of any place, and nothing there to change
    before = place.detach().floor()
    for position, weight in ((before, before + 1 - place), (before + 1, place - before)):
        inside = (position >= 0) & (position < n)
        yield position.long().clamp(0, n - 1), weight * inside


def sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear interpolation of `x` [B, H, W, heads, D], zeros around it, at `rows` [B, M, N, heads, Y] times `columns`
    [B, M, N, heads, X]: [B, M, N, heads, Y * X, D]."""
    batch, height, width, heads, _ = x.shape
    image = torch.arange(batch, device=x.device)[:, None, None, None, None] * height
    head = torch.arange(heads, device=x.device)[:, None, None]
    tokens = x.reshape(-1, x.shape[-1])
    out = 0
    for y, weight_y in _corners(rows, height):
        for x_, weight_x in _corners(columns, width):
            index = ((image + y)[..., :, None] * width + x_[..., None, :]) * heads + head  # [B, M, N, heads, Y, X]
            weight = weight_y[..., :, None] * weight_x[..., None, :]
            out = out + tokens[index] * weight[..., None]
    return out.flatten(4, 5)


def varied_window_attention(q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None,
                            geometry: Geometry, scale: float, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Varied window attention of `q`, `k` [B, H, W, heads, D] and `v` [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `sampling`: as :func:`places` takes it. `bias`: [heads, Y * X, Y * X], a table [heads, 2 Y - 1, 2 X - 1], or None.
    Differentiable any number of times. Computes in float32, or float64 for float64 inputs, and returns q's dtype.
    Arguments must have been checked. `dropout`: rate at which attention probabilities are dropped, for layers that
    train with it.
    """
    batch, height, width, heads, _ = k.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries = partition(q.to(compute) * scale, geometry)                              # [B, M, N, heads, Y * X, D]
    k, v, sampling = k.to(compute), v.to(compute), sampling.to(compute)
    rows, columns = places(sampling, geometry)
    if bias is not None:
        bias = lay_out(bias, geometry.window) if geometry.is_table(bias.shape) else bias
        bias = bias.to(compute)

    def attend(queries: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        keys, values = (sample(x, rows, columns) for x in (k, v))
        logits = queries @ keys.transpose(-1, -2)                                     # [B, M, N, heads, Y * X, Y * X]
        weights = (logits if bias is None else logits + bias).softmax(-1)
        return (drop(weights, dropout) if dropout else weights) @ values

    many = _rows_a_chunk(batch * heads * width * geometry.window[0] * max(geometry.positions, k.shape[-1]))
    if not isinstance(queries.shape[1], int) or queries.shape[1] <= many:
        out = attend(queries, rows, columns)
    else:                                                 # a large map needs little memory
        out = torch.cat([attend(*chunk) for chunk in zip(*(x.split(many, 1) for x in (queries, rows, columns)))], 1)
    return reverse(out, height, width, geometry).to(q.dtype).contiguous()


def _rows_a_chunk(numbers_a_row: int) -> int:
    """How many rows of windows are computed at a time."""
    return max(1, CHUNK // max(numbers_a_row, 1)) if isinstance(numbers_a_row, int) else 1 << 30
