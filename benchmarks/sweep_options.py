"""Tries other launch options for the kernels of an op, one kernel at a time, and tells what they change.

``python benchmarks/sweep_options.py --op halo --csv sweep.csv`` times them on this machine's GPU;
``--static 90`` compiles them for a compute capability that need not be there, and tells what they take.

Tried are twice and half the warps, one pipeline stage more and less, and registers capped where one more program fits
on a multiprocessor. What spills more registers than the options at hand is left out.
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple
from unittest import mock

import torch
from triton.runtime.errors import PTXASError

from visionattn.benchmark.cases import GROUPS, AnyCase
from visionattn.benchmark.measurement import passes
from visionattn.benchmark.neighborhood import Inputs, ours
from visionattn.benchmark.timing import measure_graph
from visionattn.kernels import _dispatch, _launch, _tape

FORMS = {"neighborhood": ("ours", "ours bias")}  # of the others there is one
SHARED_KIB = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # of a multiprocessor, by compute capability
REGISTERS, THREADS = 65536, {89: 1536, 120: 1536}


class Options(NamedTuple):
    """Other options of one kernel; none of any kernel where it has no name."""

    kernel: str = ""
    changes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.kernel, *(f"{name}={n}" for name, n in self.changes)]) or "as it is"


def programs(kernel: _launch.Compiled, capability: int) -> int:
    """How many programs of a kernel fit on a multiprocessor at once."""
    warps = kernel.kernel.metadata.num_warps
    registers = warps * 32 * -(-kernel.registers // 8) * 8
    room = SHARED_KIB[capability] * 1024 // (kernel.shared + 1024)
    return min(REGISTERS // registers, THREADS.get(capability, 2048) // (32 * warps), room)


def candidates(kernel: _launch.Compiled, capability: int) -> Iterator[Options]:
    """Options to try for a kernel that was compiled with others."""
    metadata, more = kernel.kernel.metadata, programs(kernel, capability) + 1
    for warps in (metadata.num_warps * 2, metadata.num_warps // 2):
        if 1 <= warps <= 8:
            yield Options(kernel.name, (("num_warps", warps),))
    for stages in (metadata.num_stages + 1, metadata.num_stages - 1):
        if 1 <= stages <= 4:
            yield Options(kernel.name, (("num_stages", stages),))
    cap = REGISTERS // (metadata.num_warps * 32 * more) // 8 * 8
    if cap >= 32 and more * (kernel.shared + 1024) <= SHARED_KIB[capability] * 1024:
        yield Options(kernel.name, (("maxnreg", cap),))


@contextlib.contextmanager
def changed(options: Options) -> Iterator[None]:
    """Launches inside of that kernel take the options."""
    known: dict[int, tuple[dict, dict]] = {}  # launches tell constants apart by their identity

    def apply(kernel: object, constants: dict) -> dict:
        if kernel.fn.__name__ != options.kernel:
            return constants
        return known.setdefault(id(constants), (constants | dict(options.changes), constants))[0]

    run, build = _launch._launch, _launch._compile
    _tape.forget()
    with (mock.patch.object(_launch, "_launch", lambda kernel, count, constants, args: run(
            kernel, count, apply(kernel, constants), args)),
          mock.patch.object(_launch, "_compile", lambda kernel, args, constants: build(
              kernel, args, apply(kernel, constants)))):
        yield
    _tape.forget()


def calls(case: AnyCase, form: str, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Our op on a case, by pass."""
    if case.op == "neighborhood":
        return ours(case, Inputs(case, device, dtype))[form]
    side = importlib.import_module(f"visionattn.benchmark.{case.op}").sides(case, device, dtype)[form]
    return passes(side.call, side.leaves, side.grad)


def compiled(case: AnyCase, form: str, capability: int, options: Options) -> list[_launch.Compiled]:
    """The kernels of both passes, without running them."""
    one = dataclasses.replace(case, batch=1)
    with (mock.patch.object(_dispatch, "may_fuse", return_value=True),
          mock.patch.object(_dispatch, "takes_fused", return_value=True),
          changed(options), _launch.compile_only(capability) as found):
        calls(one, form, torch.device("cpu"), torch.bfloat16)["forward_backward"]()
        return list({kernel.kernel.hash: kernel for kernel in found}.values())


def prepare(case: AnyCase, form: str, capability: int, run: bool) -> list[tuple[Options, str]]:
    """The options worth a try and what their kernels take; with ``run`` they are compiled for the launches to come."""
    torch.set_num_threads(1)
    usual = compiled(case, form, capability, Options())
    found = [(Options(), told(usual, capability))]
    for options in dict.fromkeys(options for kernel in usual for options in candidates(kernel, capability)):
        before = [kernel for kernel in usual if kernel.name == options.kernel]
        try:
            after = [kernel for kernel in compiled(case, form, capability, options) if kernel.name == options.kernel]
        except PTXASError:      # some instructions want more registers than a bound leaves
            continue
        same = [kernel[1:4] for kernel in after] == [kernel[1:4] for kernel in before]  # stages of what has no loop
        if sum(kernel.spills for kernel in after) <= sum(kernel.spills for kernel in before) and not (
                same and options.changes[0][0] == "num_stages"):
            found.append((options, told(after, capability)))
    if run:
        for options, _ in found:
            with changed(options):
                few = dataclasses.replace(case, batch=min(case.batch, 4))
                calls(few, form, torch.device("cuda"), torch.bfloat16)["forward_backward"]()
        torch.cuda.synchronize()
    return found


def told(kernels: Sequence[_launch.Compiled], capability: int) -> str:
    """Registers, spilled bytes and programs a multiprocessor of kernels."""
    return ", ".join(f"{kernel.name} {kernel.registers} registers, {kernel.spills} B spilled, "
                     f"{programs(kernel, capability)} programs" for kernel in kernels)


def measured(case: AnyCase, form: str, options: Options) -> dict[str, float | None]:
    """Milliseconds of both passes, replayed from CUDA graphs."""
    with changed(options):
        found = {}
        for name, call in calls(case, form, torch.device("cuda"), torch.bfloat16).items():
            timing = measure_graph(call)
            found[name] = timing and timing.p50
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", required=True, choices=GROUPS)
    parser.add_argument("--group", default="classifier", help="of the op's cases, or all (default: %(default)s)")
    parser.add_argument("--static", type=int, choices=SHARED_KIB, help="compile only, for this compute capability")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile (default: %(default)s)")
    parser.add_argument("--csv", help="file for the times")
    args = parser.parse_args()

    cases = [(case, form) for op in args.op for case in GROUPS[op].get(args.group, GROUPS[op]["all"])
             for form in FORMS.get(op, ("ours",))]
    capability = args.static or 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    rows = []
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        prepared = [pool.submit(prepare, case, form, capability, args.static is None) for case, form in cases]
        if args.static is None:
            for job in prepared:
                job.exception()  # all are there before anything is timed
        for (case, form), job in zip(cases, prepared, strict=True):
            print(f"{case.op} {case.name}, {form}", flush=True)
            usual: dict[str, float | None] = {}
            for options, text in job.result():
                times = {} if args.static is not None else measured(case, form, options)
                usual = usual or times
                gains = [f"{name} {ms:.4f} ms ({ms / usual[name] - 1:+.1%})" for name, ms in times.items() if ms]
                print("  " + "; ".join([f"{options}: {text}", *gains]), flush=True)
                rows += [dict(op=case.op, case=case.name, form=form, options=str(options), **{"pass": name}, p50_ms=ms)
                         for name, ms in times.items()]
    if args.csv and rows:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
