"""Channel attention in plain PyTorch: the definition, and what runs on a CPU, under ONNX and in a double backward."""

import torch
from torch import Tensor


def channel_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`q`, `k`, `v` [B, H, W, groups, D] -> [B, H, W, groups, D]: every token of `q` times softmax(scale * k^T v).

    Differentiable any number of times. Computes in float32, or float64 for float64 inputs, and returns q's dtype.
    Arguments must have been checked.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    tokens, rows, columns = (x.to(compute).flatten(1, 2).transpose(1, 2) for x in (q, k, v))   # [B, groups, N, D]
    channels = (scale * (rows.transpose(-1, -2) @ columns)).softmax(-1)                        # [B, groups, D, D]
    out = (tokens @ channels.transpose(-1, -2)).transpose(1, 2)                                # [B, N, groups, D]
    return out.reshape(q.shape).to(q.dtype).contiguous()
