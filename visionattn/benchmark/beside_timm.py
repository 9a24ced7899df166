"""An op of ours beside timm's path from projections to output and other ways to write it, eager and compiled, and what
the hardware could do."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .cases import AnyCase
from .measurement import Measurement, difference, passes
from .records import Records
from .timing import measure_rates


def _same(x: Tensor) -> Tensor:
    return x


class Side(NamedTuple):
    """One implementation on one case's tensors: a call, whose gradients are wanted, and the output's gradient."""

    call: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    grad: Tensor
    common: Callable[[Tensor], Tensor] = _same  # brings an output or a gradient into the layout that sides share


class Given(nn.Module):
    """What a projection would have given."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = x

    def forward(self, _: Tensor) -> Tensor:
        return self.x


Sides = Callable[[AnyCase, torch.device, torch.dtype], dict[str, Side]]


def agreement(ours: Side, peer: Side, name: str) -> str:
    """How far our output and gradients lie from the peer's, as relative norms: both must compute the same thing."""
    found = []
    for side in (ours, peer):
        out = side.call()
        gradients = torch.autograd.grad(out, side.leaves, side.grad)
        found.append([side.common(x) for x in (out.detach(), *gradients)])
    output, *gradients = (difference(a, b) for a, b in zip(*found, strict=True))
    return f"from {name}: output {output:.2%}, gradients {max(gradients):.2%}"


def measure_case(m: Measurement, sides: dict[str, Side], compiled: bool) -> None:
    """Adds every line of one case but the floor: all of ``sides``, of which "ours" and those not ours must agree.

    A peer that leaves out what the op may add ends in "plain", agrees with "ours plain" and is not compiled.
    """
    from torch._inductor import config

    config.compile_threads = 1  # or its workers would start up on the cores that are timed
    peers = [name for name in sides if not name.startswith("ours")]
    for implementation, side in sides.items():
        note = None
        if implementation in peers:
            own = "ours plain" if implementation.endswith(" plain") else "ours"
            try:
                note = agreement(sides[own], side, implementation)
            except Exception as error:
                note = f"not compared: {type(error).__name__}"
        for name, fn in passes(*side[:3]).items():
            m.call(implementation, name, fn, note=note)
    for peer in (name for name in peers if compiled and not name.endswith(" plain")):
        torch._dynamo.reset()
        step, leaves, grad, _ = sides[peer]
        for name, fn in passes(torch.compile(step, dynamic=False), leaves, grad).items():
            m.call(f"{peer} compiled", name, fn)


def run(
    sides: Sides,
    cases: Sequence[AnyCase],
    records: Records,
    device: torch.device,
    dtype: torch.dtype,
    origin: dict[str, str],
    budget_s: float,
    rep_ms: float,
    graphs: bool,
    compiled: bool,
    say: Callable[[str], None],
) -> None:
    """Measures ``cases`` in order and writes the records after each; ``say`` is told of progress.

    ``sides`` draws a case's tensors and gives what is measured on them. ``budget_s`` is for the whole run: cases after
    it are left out. ``compiled``: the peers under torch.compile too.
    """
    start = time.monotonic()
    rates = measure_rates(device, dtype)
    say(f"{origin['gpu']}: {rates}")
    for index, case in enumerate(cases):
        if time.monotonic() - start > budget_s:
            say(f"time is up: {len(cases) - index} of {len(cases)} rows left out")
            break
        m = Measurement(records, case, device, dtype, rep_ms, graphs, origin)
        m.floor(case, dtype.itemsize, rates)
        measure_case(m, sides(case, device, dtype), compiled)
        records.write()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"{index + 1}/{len(cases)} {case.name}: {m.line()} [{time.monotonic() - start:.0f} s]")
