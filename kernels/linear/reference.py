"""Injective linear attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double
backward. See README.md for the maths.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def scores_first(tokens: int, d: int, dv: int) -> bool:
    """Whether (q k^T) v takes fewer products than q (k^T v): on maps with fewer tokens than a head has channels.

    A symbolic number of tokens counts as many: asking would tie a graph to the answer.
    """
    return isinstance(tokens, int) and tokens * (d + dv) < 2 * d * dv


def linear_attention(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, grid: tuple[int, int],
                     scale: float) -> Tensor:  # fmt: skip
    """Injective linear attention of q, k [B, H, W, heads, D] and v [B, H, W, heads, Dv]: [B, H, W, heads, Dv].

    `residual`: [B, heads, Dv, 3, 3] or None; `grid`: rows and columns of the map that the last tokens form, which the
    residual is convolved with. Differentiable any number of times. Computes in float32, or float64 for float64 inputs,
    and returns q's dtype. Arguments must have been checked.
    """
    dtype, size = q.dtype, q.shape[1:3]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (x.to(compute).flatten(1, 2) for x in (q, k, v))                      # [B, N, heads, D]
    out = _attend(*(x.transpose(1, 2) for x in (q, k, v)), scale).transpose(1, 2)   # [B, N, heads, Dv]
    if residual is not None:
        before = v.shape[1] - grid[0] * grid[1]
        if isinstance(before, int) and before == 0:
            out = out + convolve(v.unflatten(1, grid), residual.to(compute)).flatten(1, 2)
        else:
            local = convolve(v[:, before:].unflatten(1, grid), residual.to(compute)).flatten(1, 2)
            out = out + pad(local, (0, 0, 0, 0, before, 0))
    return out.unflatten(1, size).to(dtype).contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """[B, heads, N, D] each -> [B, heads, N, Dv]. Centred, so that large means cost no digits."""
    tokens = k.shape[2]
    mean = v.mean(2, keepdim=True)
    k, v = k - k.mean(2, keepdim=True), v - mean
    if scores_first(tokens, k.shape[3], v.shape[3]):
        return (q @ k.transpose(2, 3)) @ v * (scale / tokens) + mean
    return q @ (k.transpose(2, 3) @ v * (scale / tokens)) + mean


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """[B, H, W, heads, D], and a 3x3 filter of its own for every image and channel, [B, heads, D, 3, 3]; zeros around.

    A sum of shifted maps: a grouped convolution needs the batch as a number of the graph.
    """
    height, width = x.shape[1:3]
    x, weight = pad(x, (0, 0, 0, 0, 1, 1, 1, 1)), weight[:, None, None]
    taps = [x[:, i : i + height, j : j + width] * weight[..., i, j] for i in range(3) for j in range(3)]
    return sum(taps[1:], taps[0])
