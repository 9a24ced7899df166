"""Channel attention on Triton: what is launched, and when it can run.

Layouts: q, k, v [B, H, W, groups, D], any strides, read in place where the last dimension is contiguous and rows follow
each other; out and its gradient are contiguous. The float32 weights [B, groups, D, D] are kept for the backward.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _host as host
from .._launch import launch, unspecialised
from . import passes, tuning

FORWARD = unspecialised(passes.channel_forward)
BACKWARD = unspecialised(passes.channel_backward)
WIDEST = 128  # channels of a group of which a program holds all pairs


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    if q.shape[-1] > WIDEST:
        return f"{q.shape[-1]} channels a group are over {WIDEST}: their weights would not fit into a program"
    farthest = max((s for x in (q, k, v) for s in x.stride()[1:3] if type(s) is int), default=0)
    if farthest >= host.FAR:
        return f"tokens lie {farthest} numbers apart, and the kernels count less than {host.FAR}"
    return host.unsupported(q, k, v)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, groups, D] contiguous in q's dtype, weights float32 [B, groups, D, D])."""
    batch, height, width, groups, dim = q.shape
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    weights = torch.empty(batch, groups, dim, dim, device=q.device, dtype=torch.float32)
    if out.numel() == 0:
        return out, weights
    q, k, v = (host.tokens(x) for x in (q, k, v))
    strides, align = host.strides(q, k, v)
    plan = _plan(dim, q.dtype, align, host.tf32())
    _run(FORWARD, plan.forward, (q, k, v, out, weights), strides, weights.shape, height * width, scale)
    return out, weights


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: Tensor, scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> tuple:  # fmt: skip
    """Writes into dq, dk, dv (shapes of q, k, v; last dimension contiguous, rows that follow each other)."""
    batch, height, width, groups, dim = q.shape
    if out.numel() == 0:
        return ()
    q, k, v, dq, dk, dv = (host.tokens(x) for x in (q, k, v, dq, dk, dv))
    strides, align = host.strides(q, k, v, dq, dk, dv)
    plan = _plan(dim, q.dtype, align, host.tf32())
    tensors = (q, k, v, grad_out.contiguous(), weights, dq, dk, dv)
    _run(BACKWARD, plan.backward, tensors, strides, weights.shape, height * width, scale)
    return ()


def _run(
    kernel: object, constants: "_Passes", tensors: tuple[Tensor, ...], strides: list[int], shape: torch.Size,
    tokens: int, scale: float,
) -> None:  # fmt: skip
    """Both passes of a kernel: in one launch, or with partial sums in between. ``shape``: of all images' weights."""
    batch, groups, dim, _ = shape
    slices, size = cut(tokens)
    if slices == 1:
        launch(kernel, batch * groups, constants.both, *tensors, tensors[4], *strides, tokens, groups, 1, tokens, 1,
               scale)  # fmt: skip
        return
    partial = torch.empty(batch, groups, slices, dim, dim, device=tensors[0].device, dtype=torch.float32)
    numbers = (*strides, tokens, groups, slices, size)
    launch(kernel, batch * groups * slices, constants.first, *tensors, partial, *numbers, slices, scale)
    if slices > tuning.PARTS:
        partial = partial.sum(2, keepdim=True)
    launch(kernel, batch * groups * slices, constants.second, *tensors, partial, *numbers, partial.shape[2], scale)


def cut(tokens: int) -> tuple[int, int]:
    """(slices, tokens of a slice) of an image: by its size alone, so that it gives the same in any batch."""
    size = -(-tokens // min(-(-tokens // tuning.SLICE), tuning.SLICES))
    return -(-tokens // size), size


class _Passes(NamedTuple):
    """A kernel's constants by the passes that a launch makes."""

    both: dict
    first: dict
    second: dict


class _Plan:
    """The launches' constants for one dtype and head dimension: worked out once, since they cost more than a launch."""

    def __init__(self, dim: int, dtype: torch.dtype, align: int, tf32: bool) -> None:
        wide = dtype == torch.float32
        padded = host.padded(dim)
        shared = dict(D=dim, BD=padded, ALIGN=align, PRECISION="tf32" if wide and tf32 else "ieee",
                      UPCAST=host.INTERPRETED and dtype == torch.bfloat16)  # fmt: skip

        def passes(tiles: tuning.Tiles) -> _Passes:
            more = shared | dict(BN=tiles.chunk, num_warps=tiles.warps, num_stages=tiles.stages)
            return _Passes(*(more | dict(FIRST=first, SECOND=second)
                             for first, second in ((True, True), (True, False), (False, True))))  # fmt: skip

        self.forward = passes(tuning.forward_tiles(padded, wide))
        self.backward = passes(tuning.backward_tiles(padded, wide))


_plan = functools.lru_cache(maxsize=1024)(_Plan)
