"""Routed attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward.

An axis of `n` positions is cut into regions of `ceil(n / regions)`; what the last ones lack of that lies outside the
map and is no key. Regions are numbered in reading order. See README.md for the maths.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._tracing import exporting
from .geometry import Geometry

CHUNK = 1 << 26  # logits that are held at a time: 256 MB


def _static(height: int, width: int) -> bool:
    return isinstance(height, int) and isinstance(width, int) and not exporting()


def _places(n: int, count: int, size: int, device: torch.device) -> Tensor:
    """Positions of the regions along an axis, [count, size]; some may lie behind its end."""
    return torch.arange(count, device=device)[:, None] * size + torch.arange(size, device=device)


def partition(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, R, heads, Y * X, D]: R regions of Y x X; anything finite outside the map."""
    (height, width), (rows, columns) = x.shape[1:3], geometry.regions
    size = geometry.size(height, width)
    if _static(height, width):
        if not geometry.is_whole(height, width):
            x = pad(x, (0, 0, 0, 0, 0, columns * size[1] - width, 0, rows * size[0] - height))
        x = x.unflatten(2, (columns, size[1])).unflatten(1, (rows, size[0]))
    else:       # of symbolic sizes padding would have to be known to be none or some
        y, x_ = (_places(n, count, s, x.device).clamp(max=n - 1)
                 for n, count, s in zip((height, width), geometry.regions, size))
        x = x[:, y][:, :, :, x_]                                                    # [B, rows, Y, columns, X, heads, D]
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)


def reverse(x: Tensor, height: int, width: int, geometry: Geometry) -> Tensor:
    """Undo `partition`."""
    size = geometry.size(height, width)
    x = x.unflatten(3, size).unflatten(1, geometry.regions)                         # [B, rows, columns, heads, Y, X, D]
    if _static(height, width):
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)[:, :height, :width]
    # one axis after the other, contiguous in between, or torch compares symbolic strides
    (m, i), (n, j) = (_numbers(n, s, x.device) for n, s in zip((height, width), size))
    x = x.permute(0, 1, 4, 2, 5, 3, 6).contiguous()[:, m, i]                          # [B, H, columns, X, heads, D]
    return x.contiguous()[:, :, n, j]


def _numbers(n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The region of each of `n` positions of an axis, and its number there."""
    position = torch.arange(n, device=device)
    region = position // size
    return region, position - region * size


def _outside(height: int, width: int, geometry: Geometry, device: torch.device) -> Tensor | None:
    """Which positions of the regions lie outside the map, [R, Y * X]; None where none can."""
    if _static(height, width) and geometry.is_whole(height, width):
        return None
    y, x = (_places(n, count, size, device) >= n
            for n, count, size in zip((height, width), geometry.regions, geometry.size(height, width)))
    return (y[:, None, :, None] | x[None, :, None, :]).flatten(2).flatten(0, 1)


def routed_attention(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, geometry: Geometry, scale: float) -> Tensor:
    """Routed attention of `q`, `k` [B, H, W, heads, D] and `v` [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `routes` [B, R, K]: the regions that the tokens of each region attend to. Differentiable any number of times.
    Computes in float32, or float64 for float64 inputs, and returns q's dtype. Arguments must have been checked.
    """
    batch, height, width, heads, _ = k.shape
    count, many = geometry.count, routes.shape[2]
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries = partition(q.to(compute) * scale, geometry)                              # [B, R, heads, N, D]
    keys, values = (partition(x.to(compute), geometry).flatten(0, 1) for x in (k, v))   # [B * R, heads, N, D]
    outside = _outside(height, width, geometry, q.device)
    first = torch.arange(batch, device=q.device)[:, None, None] * count
    routes = routes.long().clamp(0, count - 1)
    lowest = torch.finfo(compute).min                     # and not -inf: a query may see nothing at all

    def attend(queries: Tensor, routes: Tensor) -> Tensor:
        seen_keys, seen_values = (x[first + routes].transpose(2, 3).flatten(3, 4) for x in (keys, values))
        logits = queries @ seen_keys.transpose(-1, -2)                                # [B, r, heads, N, K * N]
        if outside is None:
            return logits.softmax(-1) @ seen_values
        hidden = outside[routes].flatten(2)[:, :, None, None]                         # [B, r, 1, 1, K * N]
        weights = logits.masked_fill(hidden, lowest).softmax(-1)
        return (weights @ seen_values).masked_fill(hidden.all(-1, keepdim=True), 0.0)

    at_once = _regions_a_chunk(batch * heads * keys.shape[2] ** 2 * many)
    if at_once >= count:
        out = attend(queries, routes)
    else:                                                 # a large map needs little memory
        out = torch.cat([attend(*chunk) for chunk in zip(queries.split(at_once, 1), routes.split(at_once, 1))], 1)
    return reverse(out, height, width, geometry).to(q.dtype).contiguous()


def _regions_a_chunk(logits_a_region: int) -> int:
    """How many regions are computed at a time."""
    return max(1, CHUNK // max(logits_a_region, 1)) if isinstance(logits_a_region, int) else 1 << 30
