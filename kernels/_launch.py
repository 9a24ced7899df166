"""How kernels are launched, and how they are compiled for a card that is not there."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import _tape

INTERPRETED = triton.knobs.runtime.interpret
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32",
          torch.int64: "*i64"}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_ALWAYS = {"enable_fp_fusion": True}  # said, since Triton 3.10 no longer contracts a product and a sum by default
_target: GPUTarget | None = None
_compiled: list["Compiled"] = []
_ready: dict[tuple[int, int] | None, tuple] = {}


class Compiled(NamedTuple):
    """What a kernel takes on a target: bytes of shared memory, registers a thread, bytes of spilled registers."""

    name: str
    shared: int
    registers: int | None
    spills: int | None
    kernel: object


def unspecialised(kernel: triton.JITFunction) -> triton.JITFunction:
    """``kernel`` with plain integers for every run-time size and stride: a new batch or map then compiles nothing."""
    names = [p.name for p in triton.JITFunction(kernel.fn).params if not (p.is_constexpr or p.name.startswith("p_"))]
    return triton.jit(kernel.fn, do_not_specialize=names)


def launch(kernel: triton.JITFunction, programs: int, constants: dict, *args: object) -> None:
    """Runs ``programs`` programs of the kernel; inside :func:`compile_only` compiles it instead.

    ``constants`` (constexpr arguments and options) must determine the dtypes of ``args`` and be the same dict object at
    every call of one kind: a call seen before then skips Triton's own argument handling, most of a launch's cost.
    """
    if _target is not None:
        _compiled.append(_compile(kernel, args, constants))
        return
    recorder = _tape.recorder()
    if recorder is None:
        _launch(kernel, programs, constants, args)
        return
    with recorder.aside():  # what a launch does with tensors is its own business
        again, rest = _launch(kernel, programs, constants, args)
    recorder.launched(again, args, rest)


def _launch(kernel: triton.JITFunction, programs: int, constants: dict, args: tuple) -> tuple[Callable | None, list]:
    """Returns what launches the same again, None where that depends on the tensors, and its further arguments."""
    key = (id(constants), torch.cuda.current_device()) if _plain(args) else None
    found = _ready.get(key)
    if found is None:
        compiled = kernel[(programs,)](*args, **constants, **_ALWAYS)
        if key is None:
            return (functools.partial(kernel[(programs,)], **constants, **_ALWAYS) if INTERPRETED else None), []
        rest = list(_constexprs(kernel, constants).values())
        _ready[key] = compiled, rest, constants  # holding the dict keeps its id from being given away
        return compiled[(programs, 1, 1)], rest
    compiled, rest, _ = found
    again = compiled[(programs, 1, 1)]
    again(*args, *rest)
    return again, rest


def _constexprs(kernel: triton.JITFunction, constants: dict) -> dict:
    """All constexpr arguments in the kernel's order: those of ``constants``, and the defaults of the others."""
    return {p.name: constants.get(p.name, p.default) for p in kernel.params if p.is_constexpr}


def _plain(args: tuple) -> bool:
    """Whether Triton would specialise these arguments the usual way: aligned pointers on a GPU, 32-bit integers."""
    pointers = 0
    for value in args:
        if isinstance(value, torch.Tensor):
            if not value.is_cuda:
                return False
            pointers |= value.data_ptr()
        elif value >= 1 << 31:
            return False
    return pointers % 16 == 0


@contextlib.contextmanager
def compile_only(capability: int) -> Iterator[list[Compiled]]:
    """Launches inside compile for compute capability ``capability`` (80, 89, 90, ...) and collect what they take.

    Needs no GPU: the tensors passed may live on the CPU, and nothing runs or is written.
    """
    global _target
    _target = GPUTarget("cuda", capability, 32)
    _compiled.clear()
    try:
        yield _compiled
    finally:
        _target = None


def takes(tensor: torch.Tensor) -> bool:
    """Whether launches take tensors where this one lies."""
    return tensor.is_cuda or INTERPRETED or _target is not None


def _compile(kernel: triton.JITFunction, args: tuple, constants: dict) -> Compiled:
    options = {name: constants[name] for name in _OPTIONS if name in constants} | _ALWAYS
    signature, attributes = {}, {}
    for position, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    fixed = _constexprs(kernel, constants)
    signature |= dict.fromkeys(fixed, "constexpr")
    binary = triton.compile(ASTSource(kernel, signature, fixed, attributes), target=_target, options=options)
    registers, spills = _resources(binary)
    return Compiled(kernel.fn.__name__, binary.metadata.shared, registers, spills, binary)


def _resources(binary: object) -> tuple[int | None, int | None]:
    """Registers and spilled bytes from the cubin, where Triton's own cuobjdump can read it."""
    import re
    import subprocess
    import tempfile

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        found = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=False)
    match = re.search(r"REG:(\d+) STACK:(\d+)", found.stdout)
    return (int(match[1]), int(match[2])) if match else (None, None)
