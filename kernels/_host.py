"""The host's side of the tile engine, for every op on it: what can run, strides, constants, numbers of programs."""

import functools
import math

import torch
import triton
from torch import Tensor

from ._dispatch import tf32 as tf32
from ._launch import INTERPRETED, takes

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


FAR = 2**31  # units of a row of the map, which the kernels count in 32 bits


def unsupported(q: Tensor, *others: Tensor) -> str | None:
    """Why the fused kernels cannot take these tensors, or None: q, whatever else lies along a map, v."""
    if not takes(q):
        return f"q is on {q.device}, the fused kernels need a CUDA device"
    if q.dtype not in DTYPES:
        return f"dtype {q.dtype} is not one of float16, bfloat16, float32"
    head_dim = max(q.shape[-1], others[-1].shape[-1])
    if head_dim > 256:
        return f"head dimension {head_dim} is over 256"
    if q.is_cuda and device(q.device)[1] < (8, 0):
        return f"compute capability {device(q.device)[1]} is below (8, 0)"
    units = _units(q, *others)
    if units >= FAR:
        return f"an image takes {units} units of memory, and the kernels count less than {FAR}"
    return None


def _units(*tensors: Tensor) -> int:
    """How far an image's elements lie apart at most, in the largest unit that all strides and gradients share.

    The gradients of packed tensors are packed as these are, so that the images of one may lie as far apart as those of
    all together. Symbolic sizes are of calls yet to come: nothing is said of them.
    """
    if not all(type(n) is int for t in tensors for n in (*t.shape, *t.stride())):
        return 0
    unit = math.gcd(8, *(n for t in tensors for n in (*t.stride()[:-1], t.shape[-1])))
    reach = (sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in tensors)
    return max(*reach, sum(math.prod(t.shape[1:]) for t in tensors)) // unit


def constants(d: int, dv: int, dtype: torch.dtype, bias: bool, align: int, allow_tf32: bool) -> dict:
    """The constexpr arguments that all kernels take whatever their index maps."""
    wide = dtype == torch.float32
    return dict(
        D=d, BD=padded(d), DV=dv, BDV=padded(dv), ALIGN=align, HAS_BIAS=bias,
        PRECISION="tf32" if wide and allow_tf32 else "ieee", UPCAST=INTERPRETED and dtype == torch.bfloat16,
        FTZ=not INTERPRETED, SPLIT=wide)  # fmt: skip


def padded(n: int) -> int:
    """A head dimension as the kernels hold it."""
    return max(16, triton.next_power_of_2(n))


def contiguous_rows(t: Tensor) -> Tensor:
    """`t`, copied where its last dimension is not contiguous."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def tokens(t: Tensor) -> Tensor:
    """[B, H, W, heads, D] -> [B, N, heads, D]; a view, unless the last dimension or rows of the map lie apart."""
    return contiguous_rows(t.flatten(1, 2))


def strides(*tensors: Tensor) -> tuple[list[int], int]:
    """All strides of each tensor but the last, 1, in units of ``align`` elements, and ``align``.

    Of a map they are (batch, row, column, head), of its :func:`tokens` (batch, token, head).
    """
    flat = [s for t in tensors for s in t.stride()[:-1]]
    align = math.gcd(8, *flat)
    return [s // align for s in flat], align


def twins(strides: list[int]) -> bool:
    """Whether the maps of each three, q, k and v and their gradients, have the same strides, and so offsets."""
    return all(strides[i:i + 4] == strides[i + 4:i + 8] == strides[i + 8:i + 12] for i in range(0, len(strides), 12))


@functools.cache
def device(device: torch.device) -> tuple[int, tuple[int, int]]:
    """(multiprocessors, compute capability); of an H200 where there is no GPU."""
    if device.type != "cuda":
        return 132, (9, 0)
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, (properties.major, properties.minor)


def programs(where: torch.device, heads: int) -> int:
    """Persistent programs a head, four a multiprocessor in all: every partial sum is bounded by their number."""
    return max(1, 4 * device(where)[0] // heads)
