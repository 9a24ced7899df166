"""What a call's host side did, played again for the next call that looks the same.

Between two calls of one layer only the data moves: shapes, strides and parameters stay, and with them every check, tile
choice, stride and launch argument. The second call of a kind is recorded, all later ones play the recording: allocate,
launch, return. That takes less than half of the host's time a forward pass, for which the GPU waits on small maps.

Recorded are the torch operators that ran (seen by a dispatch mode) and the launches (told by `_launch`). A pointer is
kept as an offset into an argument or into what the recording allocates; a call whose pointers cannot be told apart that
way, such as one whose q and k are the same tensor, is not recorded and runs as before.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ._dispatch import tf32

LIMIT = 4096  # recordings of one function; a run over ever new shapes starts afresh
_BRANCHES = 64  # ways in which backward calls of one kind may differ
_ALLOCATIONS = {torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default}
_local = threading.local()


def recorder() -> "Recorder | None":
    """The recording in progress in this thread."""
    return getattr(_local, "recorder", None)


def _signature(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape, x.stride(), x.dtype


_made: "weakref.WeakSet[Tapes]" = weakref.WeakSet()


def forget() -> None:
    """Drop all recordings: whoever changes a tile table or anything else that calls depend on must say so."""
    for tapes in _made:
        for kind in tapes.found.values():    # a graph may hold it for the backward calls to come
            kind.tape, kind.after = None, {}
        tapes.found.clear()


def _wide(x: Tensor) -> bool:
    """Whether products of `x` may be taken in TF32."""
    return x.dtype is torch.float32 and tf32()


class Kind:
    """Calls of `function(*tensors, *parameters)` that do the same, and the kinds of backward calls that follow them."""

    __slots__ = ("after", "function", "seen", "tape")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seen = 0
        self.tape: Tape | None = None
        self.after: dict[tuple, Kind] = {}

    def run(self, tensors: Sequence[Tensor | None], parameters: Sequence[Any]) -> Any:
        """The function's result, from a recording where there is one."""
        if self.tape is not None:
            pointers = 0
            for x in tensors:
                if x is not None:
                    pointers |= x.data_ptr()
            if pointers % 16 == 0:
                return self.tape.play(tensors)
        self.seen += 1
        if self.seen != 2:  # the first call compiles, and may be the only one of its kind; what failed twice will again
            return self.function(*tensors, *parameters)
        result, self.tape = record(self.function, tensors, parameters)
        return result

    def backward(self, function: Callable[..., Any], grad_out: Tensor, saved: Sequence[Tensor | None],
                 wanted: tuple) -> "Kind":
        """Of `function`, called with a gradient of this kind's first output, and its tensors and results as saved.

        Shapes and the device are those of this kind; whoever packs what is saved may have moved its elements.
        """
        key = (grad_out.stride(), wanted, _wide(grad_out), *[x if x is None else (x.stride(), x.dtype) for x in saved])
        found = self.after.get(key)
        if found is None:
            if len(self.after) >= _BRANCHES:
                self.after.clear()
            found = self.after[key] = Kind(function)
        return found


class Tapes:
    """Calls of `function(*tensors, *parameters)`, which returns tensors and depends on the tensors' layouts alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.found: dict[tuple, Kind] = {}
        _made.add(self)

    def key(self, tensors: Sequence[Tensor | None], parameters: Sequence[Any]) -> tuple:
        """Equal for calls that do the same: layouts, parameters and torch's setting of float32 products."""
        layouts = [None if x is None else (x.shape, x.stride(), x.dtype, x.get_device()) for x in tensors]
        return (*layouts, *[tuple(p) if type(p) is list else p for p in parameters], _wide(tensors[0]))

    def kind(self, key: tuple) -> Kind:
        """The calls of this key."""
        found = self.found.get(key)
        if found is None:
            if len(self.found) >= LIMIT:
                self.found.clear()
            found = self.found[key] = Kind(self.function)
        return found

    def run(self, tensors: Sequence[Tensor | None], parameters: Sequence[Any]) -> Any:
        """The function's result, from a recording where there is one."""
        return self.kind(self.key(tensors, parameters)).run(tensors, parameters)


class Tape:
    """A recording: `steps` fill `slots`, the first of which are the call's tensors; none is held between calls."""

    def __init__(self, steps: list[Callable], slots: int, outputs: Any, device: int) -> None:
        self.steps, self.slots, self.outputs, self.device = steps, slots, outputs, device

    def play(self, tensors: Sequence[Tensor | None]) -> Any:
        if self.device < 0:
            return self._play(tensors, None)
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        if self.device == torch._C._cuda_getDevice():
            return self._play(tensors, stream)
        with torch.cuda.device(self.device):
            return self._play(tensors, stream)

    def _play(self, tensors: Sequence[Tensor | None], stream: int | None) -> Any:
        values = [*tensors, *[None] * (self.slots - len(tensors))]
        for step in self.steps:
            step(values, stream)
        if type(self.outputs) is int:
            return values[self.outputs]
        return tuple([None if i is None else values[i] for i in self.outputs])


def record(function: Callable, tensors: Sequence[Tensor | None], parameters: Sequence[Any]) -> tuple[Any, Tape | None]:
    """(the function's result, its recording or None)."""
    found = Recorder(tensors)
    if found.failed or recorder() is not None:
        return function(*tensors, *parameters), None
    _local.recorder = found
    try:
        with found:
            result = function(*tensors, *parameters)
    finally:
        _local.recorder = None
    return result, found.tape(result)


def _allocation(like: Tensor) -> Callable[[], Tensor]:
    """Allocates a contiguous tensor like this one where the current device is its own."""
    shape, dtype, device = like.shape, like.dtype, like.device
    # what compiled code calls: a quarter of the time of torch.empty, which is most of a recorded call's
    brief = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if brief is None:
        return functools.partial(torch.empty, shape, dtype=dtype, device=device)
    return functools.partial(brief, tuple(shape), like.stride(), dtype)


class Recorder(TorchDispatchMode):
    """Follows one call. Everything it sees stays alive until it ends, so that no two tensors share an address."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.slots, self.inputs = len(tensors), len(tensors)
        self.alive: list[Any] = list(tensors)
        self.known: dict[tuple, int] = {}                  # signature -> slot
        self.roots: dict[int, tuple[int, int]] = {}        # storage -> slot and address of the tensor that brought it
        self.shared: set[int] = set()                      # storages of more than one of the call's tensors
        self.steps: list[tuple[Callable, set, set, bool]] = []  # what it does, slots it reads, fills, whether it writes
        given = [x for x in tensors if x is not None and x.numel()]
        self.device = given[0].get_device() if given else -1
        for slot, x in enumerate(tensors):
            if x is not None:
                if x.numel() and x.untyped_storage().data_ptr() in self.roots:
                    self.shared.add(x.untyped_storage().data_ptr())
                self._enter(x, slot)
        self.failed = not given or len({x.data_ptr() for x in given}) < len(given)

    def _enter(self, x: Tensor, slot: int) -> None:
        self.alive.append(x)
        self.known[_signature(x)] = slot
        self.roots.setdefault(x.untyped_storage().data_ptr(), (slot, x.data_ptr()))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.failed:
            self._operator(func, args, kwargs, result)
        return result

    def _operator(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        places: list[tuple[int, Any]] = []      # of an argument, and its slot, or the slots of a list of tensors
        for i, x in enumerate(args):
            if isinstance(x, Tensor):
                places.append((i, self.known.get(_signature(x))))
            elif isinstance(x, (tuple, list)) and any(isinstance(y, Tensor) for y in x):
                places.append((i, [self.known.get(_signature(y)) if isinstance(y, Tensor) else None for y in x]))
        reads = {slot for _, found in places for slot in (found if isinstance(found, list) else [found])}
        if None in reads or not all(isinstance(x, Tensor) for x in results) or any(
                isinstance(x, Tensor) for x in kwargs.values()):
            self.failed = True
            return
        replaced = {i for i, _ in places}
        constants = [None if i in replaced else x for i, x in enumerate(args)]
        fills: list[int | None] = []
        for x in results:
            new = _signature(x) not in self.known
            fills.append(self.slots if new else None)
            if new:
                self._enter(x, self.slots)
                self.slots += 1
        single = not isinstance(result, (tuple, list))

        def step(values: list, stream: int | None) -> None:
            given = constants.copy()
            for i, slot in places:
                given[i] = [values[one] for one in slot] if type(slot) is list else values[slot]
            made = func(*given, **kwargs)
            for slot, x in zip(fills, (made,) if single else made, strict=True):
                if slot is not None:
                    values[slot] = x

        filled = {slot for slot in fills if slot is not None}
        if func in _ALLOCATIONS and filled and results[0].is_contiguous():
            allocate, slot, reads = _allocation(results[0]), fills[0], set()

            def step(values: list, stream: int | None) -> None:
                values[slot] = allocate()

        self.steps.append((step, reads, filled, func._schema.is_mutable))

    def aside(self) -> contextlib.AbstractContextManager:
        """Nothing is seen within it."""
        return _disable_current_modes()

    def launched(self, run: Callable | None, args: tuple, rest: Sequence[Any]) -> None:
        """A launch of `args`, tensors and numbers; `run(*args, *rest, stream=...)` does it again, of addresses."""
        if run is None:
            self.failed = True
            return
        constants, pointers = [*args, *rest], []
        for i, x in enumerate(args):
            if isinstance(x, Tensor):
                constants[i] = None
                storage = x.untyped_storage().data_ptr()
                slot, base = self.roots.get(storage, (None, 0))
                if storage in self.shared:       # an offset would hold for these tensors only
                    slot, base = self.known.get(_signature(x)), x.data_ptr()
                    slot = slot if slot is not None and slot < self.inputs else None
                if slot is None:
                    self.failed = True
                    return
                pointers.append((i, slot, x.data_ptr() - base, x.dtype))

        def step(values: list, stream: int | None) -> None:
            given = constants.copy()
            for i, slot, offset, _ in pointers:
                given[i] = values[slot].data_ptr() + offset
            run(*given, stream=stream)

        def interpreted(values: list, stream: int | None) -> None:
            given = constants.copy()
            for i, slot, offset, dtype in pointers:  # the interpreter wants a tensor of the pointer's type
                x, size = values[slot], (1,) if values[slot].numel() else (0,)
                given[i] = x.as_strided(size, (1,), x.storage_offset() + offset // x.element_size()).view(dtype)
            run(*given)

        read = {slot for _, slot, _, _ in pointers}
        self.steps.append((step if self.device >= 0 else interpreted, read, set(), True))

    def tape(self, result: Any) -> Tape | None:
        """The recording of a call that returned `result`, without the operators that nothing needs."""
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        outputs = [None if x is None else self.known.get(_signature(x), -1) for x in results]
        if self.failed or any(i is not None and i < self.inputs for i in outputs):
            return None
        needed, steps = {i for i in outputs if i is not None}, []
        for step, read, filled, writes in reversed(self.steps):
            if writes or filled & needed:
                needed |= read
                steps.append(step)
        one = not isinstance(result, (tuple, list))
        return Tape(steps[::-1], self.slots, outputs[0] if one else outputs, self.device)
