"""The simulator's bounds beside the clock: our kernel's speed-up over itself at kernel = map, and SDPA over the map.

The baseline is our own kernel, so that the comparison says how much of the saved work becomes saved time, not how good
the kernel is. It is measured before and after the settings of a shape, and the faster time counts.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from functools import partial

import torch

from visionattn.kernels.neighborhood import neighborhood_attention
from visionattn.simulate import Problem, Result
from visionattn.simulate.ours import simulate_ours
from visionattn.training.errors import first_line

from . import natten_peer
from .cases import Case
from .neighborhood import Inputs, sdpa
from .records import Records
from .timing import measure

EXCESS = 1.05  # a measured speed-up beyond this times the bound refutes the bound
SHARE = 0.75  # of the bound: what a perfectly block-sparse setting should reach

Rows = Sequence[Mapping[str, str]]


def predict(case: Case, dtype: str) -> Result:
    """The simulator's word on our kernel's forward pass."""
    problem = Problem.make((case.height, case.width), case.kernel, case.stride, case.dilation)
    return simulate_ours(problem, case.dim, dtype)


def _full(case: Case) -> Case:
    return replace(case, kernel=case.height, stride=1, dilation=1)


def _call(case: Case, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    own = natten_peer.route(case, tensors[0].dtype, tensors[0].device)
    with torch.no_grad():
        return neighborhood_attention(*tensors, case.kernel, case.dilation, case.stride, **own)


def _compile(case: Case, dtype: torch.dtype) -> None:
    x = torch.empty(1, *case.shape[1:], device="cuda", dtype=dtype)
    _call(case, (x, x, x))
    torch.cuda.synchronize()


def prepare(cases: Sequence[Case], dtype: torch.dtype) -> None:
    """Fills Triton's cache with what ``cases`` need, in as many processes as there are cores to spare."""
    # the dilation is no constant of a kernel
    one_each = list({(case.shape, case.kernel, case.stride): case for case in cases}.values())
    workers = max(1, min(len(one_each), (os.cpu_count() or 1) - 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(_compile, case, dtype) for case in one_each]:
            job.exception()  # what fails here shows its error where it is measured


def run(
    cases: Sequence[Case],
    records: Records,
    device: torch.device,
    dtype: torch.dtype,
    origin: dict[str, str],
    rep_ms: float,
    prepared: bool,
    say: Callable[[str], None],
) -> None:
    """Measures ``cases`` (square maps) shape by shape, forward, and writes the records after each shape.

    ``prepared``: compile everything beforehand, in parallel. ``say`` is told of progress.
    """
    start = time.monotonic()
    name = str(dtype).removeprefix("torch.")
    shapes: dict[tuple, list[Case]] = {}
    for case in cases:
        shapes.setdefault(case.shape, []).append(case)
    if prepared and device.type == "cuda":
        prepare([*(_full(mine[0]) for mine in shapes.values()), *cases], dtype)
        say(f"kernels compiled in {time.monotonic() - start:.0f} s")
    for mine in shapes.values():
        full = _full(mine[0])
        x = Inputs(full, device, dtype)
        before = measure(partial(_call, full, x.separate), device, rep_ms).p50
        theirs = measure(sdpa(x)["forward"], device, rep_ms).p50
        timed = {}
        for case in mine:
            try:
                timed[case] = measure(partial(_call, case, x.separate), device, rep_ms)
            except Exception as error:  # the other measurements of a long run must not be lost
                message = first_line(error)
                timed[case] = f"{type(error).__name__}: {message[:120]}"
        baseline = min(before, measure(partial(_call, full, x.separate), device, rep_ms).p50)
        for case, timing in timed.items():
            result = predict(case, name)
            values = dict(
                op=case.op, dtype=name, **case.columns, **origin, chunks_a_tile=result.visited / result.tiles,
                block_sparse=result.block_sparse, full_ms=baseline, sdpa_ms=theirs, flop_bound=result.flop_speedup,
                bound=result.speedup)  # fmt: skip
            if isinstance(timing, str):
                records.add(**values, note=timing)
            else:
                times = dict(p20_ms=timing.p20, p50_ms=timing.p50, p80_ms=timing.p80)
                records.add(**values, **times, speedup=baseline / timing.p50)
        records.write()
        say(f"{full.name}: {baseline:.3g} ms, SDPA {theirs:.3g} ms, {len(mine)} settings "
            f"[{time.monotonic() - start:.0f} s]")  # fmt: skip


def case_of(row: Mapping[str, str]) -> Case:
    """The case of a line of the records."""
    return Case(**{field.name: int(row[field.name]) for field in fields(Case)})


def measured(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The lines that have a speed-up, by the bound."""
    return sorted((row for row in rows if row["speedup"]), key=lambda row: float(row["bound"]))


def share_of_bound(row: Mapping[str, str]) -> float:
    """The measured speed-up as a share of the realistic bound."""
    return float(row["speedup"]) / float(row["bound"])


def rank_correlation(rows: Rows, bound: str) -> float:
    """Spearman's, of the measured speed-ups and the bounds in the column ``bound``; ties share their mean rank."""
    columns = torch.tensor([[float(row[name]) for row in rows] for name in ("speedup", bound)], dtype=torch.float64)
    smaller = columns[:, None, :] < columns[:, :, None]
    equal = columns[:, None, :] == columns[:, :, None]
    return torch.corrcoef(smaller.sum(2) + equal.sum(2) / 2)[0, 1].item()


def summary(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """How good the bounds are: whether any is refuted, the order, and what block-sparse settings make of theirs."""
    rows = measured(rows)
    if len(rows) < 2:
        return ["fewer than two settings were measured"]

    def setting(row: Mapping[str, str]) -> str:
        return case_of(row).name

    over = [row for row in rows if share_of_bound(row) > EXCESS]
    most = max(rows, key=share_of_bound)
    lines = [
        f"{len(over)} of {len(rows)} settings ({len(over) / len(rows):.0%}) exceed the realistic bound by more than "
        f"{EXCESS - 1:.0%}; the most any reaches is {share_of_bound(most):.1%} of it ({setting(most)})",
        f"rank correlation of the measured speed-up with the realistic bound {rank_correlation(rows, 'bound'):.3f}, "
        f"with the bound by FLOPs alone {rank_correlation(rows, 'flop_bound'):.3f}",
    ]
    perfect = [row for row in rows if row["block_sparse"] == "True"]
    if perfect:
        worst = min(perfect, key=share_of_bound)
        below = sum(share_of_bound(row) < SHARE for row in perfect)
        lines.append(
            f"perfectly block-sparse settings reach at least {share_of_bound(worst):.1%} of their bound "
            f"({setting(worst)}); {below} of {len(perfect)} reach less than {SHARE:.0%}"
        )
    return lines


def render(rows: Iterable[Mapping[str, str]]) -> str:
    """A line a setting, by the bound: times in ms, the speed-up over our kernel at kernel = map beside both bounds."""
    header = ["setting", "ms", "kernel = map", "SDPA, map", "chunks a tile", "block-sparse", "by FLOPs", "realistic",
              "measured", "of realistic"]  # fmt: skip
    lines = [header]
    for row in measured(rows):
        cells = [row[name] for name in ("p50_ms", "full_ms", "sdpa_ms", "chunks_a_tile")]
        cells.append("yes" if row["block_sparse"] == "True" else "no")
        cells += [f"{float(row[name]):.2f}x" for name in ("flop_bound", "bound", "speedup")]
        lines.append([case_of(row).name, *cells, f"{share_of_bound(row):.0%}"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
