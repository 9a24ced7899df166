"""How much of a training step's time on the device is attention, by torch's profiler: what fusing can gain at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from visionattn.fusing import RECIPES

_BACKWARD = "autograd::engine::evaluate_function"
_sequence_number = torch._C._autograd._get_sequence_nr  # that the next node of the graph will have


class Share(NamedTuple):
    """Milliseconds of one step on the device: all of it, and attention between its projections, there and back."""

    all_ms: float
    attention_ms: float

    @property
    def part(self) -> float:
        """Attention's part of the whole, 0 to 1."""
        return self.attention_ms / self.all_ms

    def bound(self) -> float:
        """How many times as fast the step would be if attention took no time (Amdahl's law)."""
        return 1 / (1 - self.part)

    def predicted(self, attention_ms: float) -> float:
        """How many times as fast it would be if attention took ``attention_ms``."""
        return self.all_ms / (self.all_ms - self.attention_ms + attention_ms)


class Range:
    """A stretch of the forward pass, entered and left by hooks; remembers which nodes of the graph were made in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: set[int] = set()
        self.open: list[tuple[record_function, int]] = []

    def enter(self, *_) -> None:
        """A hook; changes nothing."""
        mark = record_function(self.name)
        mark.__enter__()
        self.open.append((mark, _sequence_number()))

    def leave(self, *_) -> None:
        """A hook; changes nothing."""
        mark, first = self.open.pop()
        self.nodes.update(range(first, _sequence_number()))
        mark.__exit__(None, None, None)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, bool, nn.Module]]:
    """(where it starts, where it ends, whether at the start's end and the end's start, the attention) of every fused or
    fusable attention: from the norm to what is behind, or the module itself where that is all."""
    for module in model.modules():
        if any(isinstance(module, recipe.original) for recipe in RECIPES):
            if hasattr(module, "norm1"):
                yield module.norm1, getattr(module, "ls1", module.drop_path1), True, module
            else:
                yield module, module, False, module


def _projections(module: nn.Module) -> Iterator[nn.Module]:
    for name, child in module.named_modules():
        if name.rpartition(".")[2] in ("qkv", "proj", "q", "kv"):
            yield child


def measure(model: nn.Module, step: Callable[[], object], steps: int = 2) -> Share:
    """Profiles ``step``, which trains ``model`` eagerly for one step, and finds attention in it.

    Counted are the modules that :func:`visionattn.fuse` takes, fused or not, from the norm before to what follows, in
    the forward and the backward pass, without their projections, which stay what they are.

    Raises:
        ValueError: for a model without such modules.
    """
    attention, projection, hooks = Range("visionattn.attention"), Range("visionattn.projection"), []
    for start, end, between, module in _places(model):
        if between:
            hooks.append(start.register_forward_hook(attention.enter))
            hooks.append(end.register_forward_pre_hook(attention.leave))
        else:
            hooks.append(start.register_forward_pre_hook(attention.enter))
            hooks.append(end.register_forward_hook(attention.leave))
        # the MLP's projections have other names, and lie behind the end
        for linear in _projections(module):
            hooks.append(linear.register_forward_pre_hook(projection.enter))
            hooks.append(linear.register_forward_hook(projection.leave))
    if not hooks:
        raise ValueError("model must hold attention that visionattn.fuse takes")
    on_gpu = next(model.parameters()).is_cuda
    try:
        step()
        attention.nodes.clear(), projection.nodes.clear()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(steps):
                step()
            if on_gpu:
                torch.cuda.synchronize()
    finally:
        for hook in hooks:
            hook.remove()
    nodes = attention.nodes - projection.nodes
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    total = found = 0.0
    for event in events:
        total += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        whole = event.device_time_total if on_gpu else event.cpu_time_total
        if event.name == attention.name:
            found += whole
        elif event.name == projection.name:
            found -= whole
        elif event.name.startswith(_BACKWARD) and event.sequence_nr in nodes:
            found += whole
    return Share(total / steps / 1e3, found / steps / 1e3)
