"""Neighborhood attention beside its peers: NATTEN, SDPA over the whole map, and what the hardware could do at best."""

import math
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import neighborhood_attention, neighborhood_attention_packed

from . import first_call, natten_peer
from .cases import Case
from .measurement import PASSES, Measurement, difference, passes
from .records import Records
from .timing import Rates, measure_rates


class Inputs:
    """Random tensors of one case, the same numbers in every form: packed, and separate in memory of their own."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=kind)

        batch, height, width, heads, dim = case.shape
        self.packed = draw(batch, height, width, 3, heads, dim).requires_grad_()
        self.separate = [x.contiguous().requires_grad_() for x in self.packed.detach().unbind(3)]
        self.bias = draw(heads, 2 * case.kernel - 1, 2 * case.kernel - 1, kind=torch.float32).requires_grad_()
        self.grad = draw(*case.shape)


def ours(case: Case, x: Inputs) -> dict[str, dict[str, Callable[[], object]]]:
    """Every form of our op: separate and packed inputs, each without and with the relative table."""
    args = (case.kernel, case.dilation, case.stride)
    q, k, v = x.separate
    own = natten_peer.route(case, q.dtype, q.device)
    forms = {
        "ours": (lambda: neighborhood_attention(q, k, v, *args, **own), x.separate),
        "ours packed": (lambda: neighborhood_attention_packed(x.packed, *args, **own), [x.packed]),
        "ours bias": (lambda: neighborhood_attention(q, k, v, *args, bias=x.bias), [*x.separate, x.bias]),
        "ours packed bias": (lambda: neighborhood_attention_packed(x.packed, *args, bias=x.bias), [x.packed, x.bias]),
    }
    return {name: passes(fn, inputs, x.grad) for name, (fn, inputs) in forms.items()}


def sdpa(x: Inputs) -> dict[str, Callable[[], object]]:
    """torch's attention of every position to the whole map, from the same heads-last memory."""
    q, k, v = x.separate
    grad = x.grad.flatten(1, 2).transpose(1, 2)

    def run() -> Tensor:
        return F.scaled_dot_product_attention(*(z.flatten(1, 2).transpose(1, 2) for z in (q, k, v)))

    return passes(run, x.separate, grad)


def agreement(case: Case, x: Inputs, peer: natten_peer.Natten, config: natten_peer.Config) -> str:
    """How far our output and gradients lie from NATTEN's, as relative norms: both must compute the same thing."""
    own = natten_peer.route(case, x.grad.dtype, x.grad.device)
    mine = neighborhood_attention(*x.separate, case.kernel, case.dilation, case.stride, **own)
    theirs = peer.output(config)
    gradients = (torch.autograd.grad(out, x.separate, x.grad) for out in (mine, theirs))
    worst = max(difference(a, b) for a, b in zip(*gradients))
    return f"from NATTEN: output {difference(mine.detach(), theirs.detach()):.2%}, gradients {worst:.2%}"


def measure_case(
    m: Measurement, case: Case, device: torch.device, dtype: torch.dtype, rates: Rates, natten_s: float, rep_ms: float
) -> None:
    """Adds every line of one case; ``natten_s`` bounds the search through NATTEN's configurations."""
    x = Inputs(case, device, dtype)
    m.floor(case, x.packed.element_size(), rates)
    for implementation, calls in ours(case, x).items():
        for name in PASSES:
            m.call(implementation, name, calls[name])
    for name, fn in sdpa(x).items():
        m.call("sdpa", name, fn)

    reason = natten_peer.why_not(device)
    if reason:
        for name in PASSES:
            m.add("natten", name, note=reason)
        return
    peer = natten_peer.Natten(case, *x.separate, x.grad)
    try:
        best = peer.best(natten_s, rep_ms)
    except Exception as error:
        best = (None, None)
        reason = f"{type(error).__name__}: {str(error)[:120]}"
    for name, one in zip(PASSES, best):
        if one is None:
            m.add("natten", name, note=reason or "no configuration ran")
            continue
        try:
            note = f"{one.tried}; " + agreement(case, x, peer, one.config)
        except Exception as error:
            note = f"{one.tried}; not compared: {type(error).__name__}"
        m.call("natten", name, one.call, timing=one.timing, config=str(one.config), note=note)


def run(
    cases: Sequence[Case],
    records: Records,
    device: torch.device,
    dtype: torch.dtype,
    origin: dict[str, str],
    budget_s: float,
    rep_ms: float,
    graphs: bool,
    first_calls: bool,
    prepare: bool,
    say: Callable[[str], None],
) -> None:
    """Measures ``cases`` in order and writes the records after each; ``say`` is told of progress.

    ``prepare`` compiles what all cases need beforehand, in parallel. ``budget_s`` is for the whole run: cases after it
    are left out, and the search through NATTEN's configurations gets half of what is left of it, shared evenly by the
    cases still to come.
    """
    start = time.monotonic()
    deadline = start + budget_s
    if prepare and device.type == "cuda":
        failed = first_call.prepare(cases, dtype, limit_s=budget_s / 2)
        say("\n".join([f"kernels compiled in {time.monotonic() - start:.0f} s", *failed]))
    rates = measure_rates(device, dtype)
    say(f"{origin['gpu']}: {rates}")
    for index, case in enumerate(cases):
        left = deadline - time.monotonic()
        if left <= 0:
            say(f"time is up: {len(cases) - index} of {len(cases)} rows left out")
            break
        m = Measurement(records, case, device, dtype, rep_ms, graphs, origin)
        measure_case(m, case, device, dtype, rates, natten_s=left / (len(cases) - index) / 2, rep_ms=rep_ms)
        records.write()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"{index + 1}/{len(cases)} {case.name}: {m.line()} [{time.monotonic() - start:.0f} s]")
    if first_calls and device.type == "cuda":
        case = cases[0]
        m = Measurement(records, case, device, dtype, rep_ms, graphs, origin)
        for name in PASSES:
            for biased in (False, True):
                seconds = first_call.measure(case, dtype, name, biased)
                known = not math.isnan(seconds.first)
                label = f"first call {'bias ' if biased else ''}{name}"
                m.add(
                    "ours bias" if biased else "ours",
                    f"first_call_{name}",
                    p50_ms=seconds.first * 1e3 if known else None,
                    note=seconds.note,
                )
                say(f"{label}: {f'{seconds.first:.2f} s' if known else 'failed'} ({seconds.note})")
        records.write()
