"""Halo attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward.

An axis of `n` positions is cut into blocks of `b`, the last one reaching beyond the map where `b` does not divide `n`.
The keys of block i are the positions `b * i - halo` to `b * i + b + halo - 1`, inside the map or not: what lies outside
is a key and a value of zeros, and takes its share of the softmax. See README.md for the maths.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._tracing import exporting
from .geometry import Geometry

CHUNK = 1 << 26  # logits that are held at a time: 256 MB


def _static(*sizes: int) -> bool:
    return all(isinstance(n, int) for n in sizes) and not exporting()


def cut_queries(q: Tensor, blocks: tuple[int, int], geometry: Geometry) -> Tensor:
    """[B, Hq, Wq, heads, D] -> [B, heads, M, N, Y, X, D]: M x N blocks of Y x X queries, zeros outside the map."""
    (rows, columns), (many_y, many_x) = geometry.queries, blocks
    q = pad(q, (0, 0, 0, 0, 0, many_x * columns - q.shape[2], 0, many_y * rows - q.shape[1]))
    return q.unflatten(2, (many_x, columns)).unflatten(1, (many_y, rows)).permute(0, 5, 1, 3, 2, 4, 6)


def cut_keys(x: Tensor, blocks: tuple[int, int], geometry: Geometry) -> Tensor:
    """[B, H, W, heads, D] -> [B, heads, M, N, Y * X, D]: the keys of each block, zeros outside the map."""
    (halo_y, halo_x), (block_y, block_x), (window_y, window_x) = geometry.halo, geometry.block, geometry.window
    (height, width), (many_y, many_x) = x.shape[1:3], blocks
    x = pad(x, (0, 0, 0, 0, halo_x, many_x * block_x - width + halo_x, halo_y, many_y * block_y - height + halo_y))
    if _static(height, width):
        x = x.unfold(1, window_y, block_y).unfold(2, window_x, block_x)               # [B, M, N, heads, D, Y, X]
        return x.permute(0, 3, 1, 2, 5, 6, 4).flatten(4, 5)
    rows, columns = (torch.arange(many, device=x.device)[:, None] * block + torch.arange(window, device=x.device)
                     for many, block, window in zip(blocks, geometry.block, geometry.window))
    return x[:, rows][:, :, :, columns].permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5)


def join_queries(x: Tensor, height: int, width: int) -> Tensor:
    """[B, heads, M, N, Y, X, D] -> [B, height, width, heads, D]; what is left over is dropped."""
    x = x.permute(0, 2, 4, 3, 5, 1, 6)                                                # [B, M, Y, N, X, heads, D]
    if _static(height, width):
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]
    # one axis after the other, contiguous in between, or torch compares symbolic strides
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    x = x.contiguous()[:, rows // x.shape[2], rows % x.shape[2]]                      # [B, height, N, X, heads, D]
    return x.contiguous()[:, :, columns // x.shape[3], columns % x.shape[3]]


def displacements(window: int, queries: int, device: torch.device) -> Tensor:
    """Row of a table for each (query, key) along an axis, [queries, window]: key minus query, plus window - 1."""
    return torch.arange(window, device=device) - torch.arange(queries, device=device)[:, None] + (window - 1)


def halo_attention(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Geometry,
                   scale: float) -> Tensor:  # fmt: skip
    """Halo attention of `q` [B, Hq, Wq, heads, D], `k` [B, H, W, heads, D], `v` [B, H, W, heads, Dv] with the tables
    `rel_h`, `rel_w` [2 * window - 1, D]: [B, Hq, Wq, heads, Dv].

    Differentiable any number of times. Computes in float32, or float64 for float64 inputs, and returns q's dtype.
    Arguments must have been checked.
    """
    batch, height, width, heads, _ = q.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    blocks = geometry.blocks(*k.shape[1:3])
    queries = cut_queries(q.to(compute), blocks, geometry)                            # [B, heads, M, N, Y, X, D]
    keys, values = (cut_keys(x.to(compute), blocks, geometry) for x in (k, v))        # [B, heads, M, N, keys, D]
    if not _static(height, width):                        # of views torch would compare symbolic strides
        queries, keys, values = (x.contiguous() for x in (queries, keys, values))
    (many_y, many_x), (window_y, window_x) = geometry.queries, geometry.window
    table_y = rel_h.to(compute)[displacements(window_y, many_y, q.device)]            # [Y, window_y, D]
    table_x = rel_w.to(compute)[displacements(window_x, many_x, q.device)]            # [X, window_x, D]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        logits = (queries * scale).flatten(4, 5) @ keys.transpose(-1, -2)             # [B, heads, M, N, Y * X, keys]
        rows = queries @ table_y.transpose(-1, -2)                                    # [B, heads, M, N, Y, X, window_y]
        columns = (queries.transpose(4, 5) @ table_x.transpose(-1, -2)).transpose(4, 5)
        relative = rows.unsqueeze(-1) + columns.unsqueeze(-2)                         # [..., Y, X, window_y, window_x]
        weights = (logits + relative.flatten(6, 7).flatten(4, 5)).softmax(-1)
        return (weights @ values).unflatten(4, (many_y, many_x))

    rows = _rows_a_chunk(batch * heads * blocks[1] * many_y * many_x * window_y * window_x)
    if not isinstance(blocks[0], int) or blocks[0] <= rows:
        out = attend(queries, keys, values)
    else:                                                 # a large map needs little memory
        out = torch.cat([attend(*chunk) for chunk in zip(*(x.split(rows, 2) for x in (queries, keys, values)))], 2)
    return join_queries(out, height, width).to(q.dtype).contiguous()


def _rows_a_chunk(logits_a_row: int) -> int:
    """How many rows of blocks are computed at a time."""
    return max(1, CHUNK // max(logits_a_row, 1)) if isinstance(logits_a_row, int) else 1 << 30
