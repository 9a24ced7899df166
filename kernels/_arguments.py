"""What every op asks of its tensors and pairs of numbers: errors name the argument, what it was and what is allowed."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """`value` as (rows, columns). Raises TypeError for anything but an int or two of them."""
    found = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(found) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in found):
        raise TypeError(f"{name} must be an int or a pair of ints (rows, columns), got {value!r}")
    return found


def switches(name: str, value: bool | tuple[bool, bool]) -> tuple[bool, bool]:
    """`value` as (rows, columns). Raises TypeError for anything but a bool or two of them."""
    found = (value, value) if isinstance(value, bool) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(found) != 2 or not all(isinstance(x, bool) for x in found):
        raise TypeError(f"{name} must be a bool or a pair of bools (rows, columns), got {value!r}")
    return found


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up; symbolic sizes stay symbolic."""
    return (n + d - 1) // d


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises unless q, k, v have five dimensions, head dimensions of 8 to 256, and one floating-point dtype and device.

    What they must have in common beyond that is the op's own business.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 5:
            raise ValueError(f"{name} must be [batch, height, width, heads, head_dim], got shape {list(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"q, k and v must have one dtype, got {q.dtype} for q and {x.dtype} for {name}")
        if x.device != q.device:
            raise ValueError(f"q, k and v must be on one device, got {q.device} for q and {x.device} for {name}")
        if not 8 <= x.shape[4] <= 256:
            raise ValueError(f"the head dimension of {name} must lie in 8..256, got {x.shape[4]}")
    if not q.dtype.is_floating_point or q.dtype.itemsize == 1:
        raise TypeError(f"q, k and v must be float16, bfloat16, float32 or float64, got {q.dtype}")


def check_bias(bias: Tensor, q: Tensor, words: str, shape: tuple[int, ...], name: str = "bias") -> None:
    """Raises unless `bias` is a floating-point tensor of `shape`, which reads `words`, on q's device."""
    if bias.ndim != len(shape) or bias.shape != shape:
        raise ValueError(f"{name} must be {words} = {list(shape)}, got shape {list(bias.shape)}")
    if not bias.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {bias.dtype}")
    if bias.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {bias.device}")


def logit_scale(q: Tensor, scale: float | None) -> float:
    """`scale`, or head_dim ** -0.5 where there is none."""
    return q.shape[-1] ** -0.5 if scale is None else float(scale)


def remembered(make: Callable) -> Callable:
    """`make`, a function of numbers and pairs of them, asked only once for the same ones."""
    cached = functools.lru_cache(maxsize=256, typed=True)(make)

    def call(*args: object) -> object:
        if torch.compiler.is_compiling():    # compilers see through the function, but not through the cache
            return make(*args)
        try:
            return cached(*args)
        except TypeError:                    # a list cannot be looked up; what is no pair gets its own message
            return make(*args)

    return call
