"""NATTEN, the peer of the neighborhood kernels: its fastest configuration for a case, found by trying them all.

NATTEN offers several backends, each with a list of forward and of backward tile shapes. Where the neighborhood is the
whole map it hands over to plain attention, whose tiles are then the ones to choose.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.kernels import explain
from visionattn.kernels.neighborhood import natten as guest

from .cases import Case
from .timing import Timing, measure, quick


def why_not(device: torch.device) -> str | None:
    """Why NATTEN cannot be measured here, or None."""
    if device.type != "cuda":
        return "NATTEN's kernels need a GPU"
    try:
        import natten
    except ImportError as error:
        return f"NATTEN is not importable ({error})"
    return None if natten.HAS_LIBNATTEN else "NATTEN was installed without its CUDA library"


@functools.cache
def route(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """Arguments that keep our op on its own kernel for ``case``, which may else take NATTEN's where that is faster.

    That way costs the host a little more, so cases that stay with us anyway do without.
    """
    x = torch.empty((), dtype=dtype, device=device).expand(case.shape)
    found = explain("neighborhood_attention", x, x, x, case.kernel, case.dilation, case.stride)
    return {"backend": "fused"} if found.runs == guest.NAME else {}


@dataclass(frozen=True)
class Config:
    """One way to run NATTEN: keyword arguments of ``na2d`` for the forward, and more for its backward."""

    backend: str
    options: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        values = [str(getattr(value, "name", value)).replace(" ", "") for _, value in self.options]
        return " ".join([self.backend, *values])


@dataclass
class Best:
    """The fastest configuration of one pass."""

    config: Config
    timing: Timing
    call: Callable[[], object]
    tried: str


class Natten:
    """NATTEN on one case's tensors ``[B, H, W, heads, D]`` (q, k, v require gradients)."""

    def __init__(self, case: Case, q: Tensor, k: Tensor, v: Tensor, grad: Tensor):
        self.case, self.inputs, self.grad = case, (q, k, v), grad
        self.whole_map = case.kernel == case.height == case.width

    def arguments(self, config: Config) -> dict[str, object]:
        """What ``na2d`` takes beside the neighborhood to run one configuration."""
        options = dict(config.options, backend=config.backend)
        return dict(attention_kwargs=options) if self.whole_map else options

    def output(self, config: Config) -> Tensor:
        """The attention's output under one configuration."""
        import natten

        case, options = self.case, self.arguments(config)
        return natten.na2d(*self.inputs, kernel_size=case.kernel, dilation=case.dilation, stride=case.stride, **options)

    def forward(self, config: Config) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.no_grad():
                return self.output(config)

        return call

    def forward_backward(self, config: Config) -> Callable[[], object]:
        return lambda: torch.autograd.grad(self.output(config), self.inputs, self.grad)

    def configs(self) -> dict[str, tuple[list[Config], list[tuple[tuple[str, object], ...]]]]:
        """By backend: every forward configuration, and the options of every backward one."""
        from natten import backends

        kind, noun = ("fmha", "size") if self.whole_map else ("fna", "shape")
        tensors = [x.detach().flatten(1, 2) if self.whole_map else x.detach() for x in self.inputs]
        found = {}
        for family in ("hopper", "blackwell", "cutlass"):
            suffix = f"configs_for_{'' if family == 'cutlass' else 'cutlass_'}{family}_{kind}"
            forward = []
            for entry in getattr(backends, f"get_{suffix}")(*tensors):
                # Hopper's entries are ((q tile, kv tile), schedule), the others' (q tile, kv tile).
                (q_tile, kv_tile), *schedule = entry if family == "hopper" else (entry,)
                options = [(f"q_tile_{noun}", q_tile), (f"kv_tile_{noun}", kv_tile)]
                options += [("kernel_schedule", one) for one in schedule]
                forward.append(Config(f"{family}-{kind}", tuple(options)))
            backward = [
                ((f"backward_q_tile_{noun}", q_tile), (f"backward_kv_tile_{noun}", kv_tile))
                for q_tile, kv_tile in getattr(backends, f"get_bwd_{suffix}")(*tensors)
            ]
            if forward:
                found[f"{family}-{kind}"] = (forward, backward)
        return found

    def best(self, budget_s: float, rep_ms: float) -> tuple[Best | None, Best | None]:
        """The fastest forward and the fastest forward+backward; None where nothing ran.

        Each configuration is timed roughly, then the three fastest of a pass properly. A backward is tried behind its
        backend's fastest forward, with the key splits of NATTEN's choice and, for the fastest tiles, with none.
        The search stops after ``budget_s``; ``tried`` says how far it came.
        """
        deadline = time.monotonic() + budget_s
        configs = self.configs()
        # Interleaved, so that a search that is cut short has seen some of every backend.
        candidates = _interleave([forward for forward, _ in configs.values()])
        forward, forward_tried = screen(candidates, self.forward, deadline)
        if not forward:
            return None, None
        fastest = self._final(forward, self.forward, rep_ms, forward_tried)
        first: dict[str, Config] = {}
        for _, config in forward:
            first.setdefault(config.backend, config)
        candidates = [
            [Config(name, config.options + options) for options in configs[name][1]] for name, config in first.items()
        ]
        both, both_tried = screen(_interleave(candidates), self.forward_backward, deadline)
        unsplit = [
            Config(config.backend, (*config.options, ("backward_kv_splits", 1 if self.whole_map else (1, 1))))
            for _, config in both[:3]
            if config.backend.startswith("cutlass")
        ]
        both = sorted(both + screen(iter(unsplit), self.forward_backward, deadline)[0], key=lambda pair: pair[0])
        return fastest, self._final(both, self.forward_backward, rep_ms, both_tried) if both else None

    def _final(self, screened: list[tuple[float, Config]], make: Callable, rep_ms: float, tried: str) -> Best:
        finals = []
        for _, config in screened[:3]:
            call = make(config)
            finals.append(Best(config, measure(call, torch.device("cuda"), rep_ms), call, tried))
        return min(finals, key=lambda best: best.timing.p50)


def _interleave(lists: list[list[Config]]) -> Iterator[Config]:
    for group in itertools.zip_longest(*lists):
        yield from (config for config in group if config is not None)


def screen(configs: Iterator[Config], make: Callable, deadline: float) -> tuple[list[tuple[float, Config]], str]:
    """Rough times of ``configs``, fastest first, and how many of them ran before the deadline."""
    times: list[tuple[float, Config]] = []
    failed = skipped = 0
    for config in configs:
        if time.monotonic() > deadline:
            skipped += 1
            continue
        try:
            times.append((quick(make(config), min((t for t, _ in times), default=float("inf"))), config))
        except Exception:  # a tile that the peer lists but cannot run on these tensors is no candidate
            failed += 1
    tried = f"best of {len(times)}"
    tried += f", {failed} did not run" if failed else ""
    tried += f", {skipped} left out for time" if skipped else ""
    return sorted(times, key=lambda pair: pair[0]), tried
