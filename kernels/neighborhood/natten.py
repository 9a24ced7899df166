"""NATTEN's kernels as another implementation of neighborhood attention: asked for, or where they were measured faster.

NATTEN (Hassani et al., https://natten.org) is used if it is installed, and imported when a call first takes it. Its
semantics are ours, but for the relative bias, which it dropped, and its gradients are its own.
"""
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from .._dispatch import load
from .geometry import Geometry

NAME = "natten"
BACKENDS = ("fused", "reference", "natten")
VARIABLE = "VISIONATTN_NEIGHBORHOOD_BACKEND"
# head dimension, kernel and stride: in benchmarks/nvidia_h200_kernels.csv its forward is faster at 128, 80 and 16
WINS_FROM = (128, 64, 16)
INSTALLED = importlib.util.find_spec("natten") is not None
ASKED = os.environ.get(VARIABLE)  # read once, so that compilers see a constant


def wanted(backend: str | None, kernel: tuple[int, int]) -> bool:
    """Whether a call has any choice: something is asked for, or NATTEN could be taken. Asked on every call."""
    if backend or ASKED:
        return True
    return INSTALLED and min(kernel) >= WINS_FROM[1] and not torch.compiler.is_compiling()


def refuses(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
            geometry: Geometry) -> str | None:
    """Why NATTEN cannot take this call, or None."""
    if not INSTALLED:
        return "natten is not installed"
    if bias is not None:
        return "NATTEN has no relative bias since 0.20"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"dtype {q.dtype} is not one of float16, bfloat16, float32"
    if min(geometry.kernel) < 2:
        return f"NATTEN's kernels begin at 2, and kernel_size is {geometry.kernel}"
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (q, k, v, extra_k, extra_v)):
        return "NATTEN has no gradients on a CPU"
    if q.is_cuda and not load("natten").HAS_LIBNATTEN:
        return "natten was installed without its CUDA library"
    return None


def loses(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
          geometry: Geometry) -> str | None:
    """Why NATTEN is not taken unless it is asked for, though it could; None where it was measured faster."""
    head_dim, kernel, stride = WINS_FROM
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) != (9, 0):
        return "it was measured faster on compute capability 9.0 alone"
    if q.dtype == torch.float32 or q.shape[-1] != head_dim or min(geometry.kernel) < kernel:
        return f"it was measured faster in 16 bits at head dimension {head_dim} and kernels of {kernel} and more alone"
    if min(geometry.stride) < stride:
        return f"it was measured faster at strides of {stride} and more alone"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it was measured faster without gradients alone"
    if any(geometry.causal) or extra_k is not None:
        return "it was measured faster without causality and extra tokens alone"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are asked for"
    return None


def chosen(backend: str | None, *call: Any) -> str | None:
    """The implementation that this call must take, None for the usual order; `call` is what `refuses` takes.

    Raises ValueError for an unknown name, and where `backend` asks for what cannot take the call, with the reason.
    """
    asked = ASKED if backend is None else backend
    if not asked:
        return None if loses(*call) or refuses(*call) else "natten"
    name = VARIABLE if backend is None else "backend"
    if asked not in BACKENDS:
        raise ValueError(f"{name} must be one of {', '.join(BACKENDS)}, got {asked!r}")
    reason = refuses(*call) if asked == "natten" else None
    if reason is None:
        return asked
    if backend is None:  # a variable speaks of all calls of a process: those that it cannot be had for go on as usual
        return None
    raise ValueError(f"backend 'natten' cannot take this call: {reason}")


def attend(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, extra_k: Tensor | None,
           extra_v: Tensor | None) -> Tensor:
    """Shapes as in `neighborhood_attention`; differentiable in its tensors on a GPU."""
    return load("natten").na2d(q, k, v, kernel_size=geometry.kernel, stride=geometry.stride, dilation=geometry.dilation,
                               is_causal=geometry.causal, scale=scale, additional_keys=extra_k,
                               additional_values=extra_v)
