"""Which implementation of an op runs, and why the others do not.

Every implementation answers with the reason why it cannot take a call, or None. `explain` shows the answers; a call
takes the first that can. On a GPU, falling back to the reference warns once a reason: it is never silent.
"""
import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ._register import AttentionOp

# With VISIONATTN_INTERPRET=1 tensors on the CPU take the very route of tensors on a GPU, their kernels run by Triton's
# interpreter: slow, for tests and debugging. `interpreted()` is the same for a block of code.
_interpreting = os.environ.get("VISIONATTN_INTERPRET", "0") == "1"
if _interpreting:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, which is later


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within the block the fused kernels also take CPU tensors, under Triton's interpreter.

    Raises RuntimeError unless TRITON_INTERPRET=1 was in the environment, as it must be before Triton is imported.
    """
    global _interpreting
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise RuntimeError("interpreted() needs TRITON_INTERPRET=1 in the environment before triton is first imported")
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


_referenced = False


@contextlib.contextmanager
def referenced() -> Iterator[None]:
    """Within the block every op runs its reference, on a GPU too: what kernels are measured and checked against."""
    global _referenced
    before, _referenced = _referenced, True
    try:
        yield
    finally:
        _referenced = before


@functools.cache
def _no_triton() -> str | None:
    if torch.version.hip is not None:
        return "the fused kernels are written for NVIDIA GPUs, and this torch is built for ROCm"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def tf32() -> bool:
    """Whether torch lets float32 products round their factors."""
    # the older allow_tf32 raises once anything has been set the newer way, which exists from torch 2.9 on
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.backends.cuda.matmul.allow_tf32 if precision is None else precision == "tf32"


@functools.cache
def load(module: str) -> ModuleType:
    """The module with an op's fused kernels. Imports triton."""
    return importlib.import_module(module)


def fused_refuses(op: "AttentionOp", q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> str | None:
    """Why the fused kernels cannot take this call, or None. `rest`: the op's further tensors and parameters."""
    device = q.device.type
    if device == "meta":  # nothing is computed, and shapes and FLOPs are the fused op's
        return None
    if device != "cuda" and not (_interpreting and device == "cpu"):
        return f"the fused kernels need a CUDA device, and q is on {q.device}"
    return _no_triton() or load(op.fused).unsupported(q, k, v, *rest[:-1])  # all but the scale, which is any


@functools.cache
def _warn_once(name: str, reason: str) -> None:
    warnings.warn(f"visionattn.kernels.{name} runs its reference implementation on a GPU, which is slow: {reason}",
                  RuntimeWarning, stacklevel=2)


def may_fuse(q: Tensor) -> bool:
    """Whether tensors where q lies may go to the fused kernels at all."""
    return (q.is_cuda or _interpreting) and not _referenced


def takes_fused(op: "AttentionOp", q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> bool:
    """Whether the fused kernels run. Warns once a reason where a GPU has to run the reference."""
    device = q.device.type
    if _referenced or device == "cpu" and not _interpreting:
        return False
    reason = fused_refuses(op, q, k, v, *rest)
    if reason is not None and device != "cpu":
        _warn_once(op.name, reason)
    return reason is None


class Verdict(NamedTuple):
    """One implementation's answer to a call."""

    implementation: str
    reason: str | None  # why it cannot run; None if it can

    def __str__(self) -> str:
        return f"{self.implementation}: {'can run' if self.reason is None else self.reason}"


class Explanation(NamedTuple):
    """What a call would do. Prints as a few lines."""

    op: str
    runs: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.op} runs: {self.runs}", *(f"  {verdict}" for verdict in self.verdicts)])

    __repr__ = __str__


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation a call of `op` takes, and why the others do not. Computes nothing.

    `op` is the name of a public function of `visionattn.kernels`, the other arguments are that function's:
    `print(explain("neighborhood_attention", q, k, v, kernel_size=7))`. Raises ValueError for an unknown name, and
    whatever the call itself would raise for arguments that it refuses.
    """
    from ._register import FUNCTIONS
    if op not in FUNCTIONS:
        raise ValueError(f"op must be one of {', '.join(sorted(FUNCTIONS))}, got {op!r}")
    found = FUNCTIONS[op].op
    q, k, v, *rest = FUNCTIONS[op].resolve(*args, **kwargs)
    verdicts = [Verdict("fused (triton)", fused_refuses(found, q, k, v, *rest)), Verdict("reference", None)]
    chosen = None
    if found.guest is not None:
        guest, tensors = load(found.guest), (q, k, v, *rest[:-1])
        chosen = guest.chosen(kwargs.get("backend"), *tensors)
        reason = guest.refuses(*tensors)
        if reason is None and chosen != guest.NAME:
            reason = guest.loses(*tensors)
        verdicts.insert(1, Verdict(guest.NAME, reason))
    runs = next((v for v in verdicts if chosen and v.implementation.startswith(chosen)), None)
    runs = runs or next(v for v in verdicts if v.reason is None)
    return Explanation(op, runs.implementation, tuple(verdicts))
