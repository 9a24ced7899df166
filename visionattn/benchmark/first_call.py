"""How long a user waits for the very first call: a fresh process with an empty Triton cache.

Also compiles many cases at once, each in a process of its own, so that a long run does not wait for them in turn.
``python -m visionattn.benchmark.first_call forward 128 56 56 2 32 7 1 1 bfloat16 0`` prints the times; instead of
``forward`` it also takes ``forward_backward`` and ``all``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import visionattn

from .cases import Case


class FirstCall(NamedTuple):
    """Seconds of the first call (not a number where it failed) and what there is to say about it."""

    first: float
    note: str


def _run(case: Case, dtype: torch.dtype, name: str, biased: bool, limit_s: float, **environment: str) -> FirstCall:
    values = (*case.shape, case.kernel, case.dilation, case.stride, str(dtype).removeprefix("torch."), int(biased))
    root = str(Path(visionattn.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, name, *map(str, values)]
    variables = {**os.environ, **environment, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return FirstCall(float("nan"), f"no result within {limit_s:.0f} s")
    if done.returncode:
        return FirstCall(float("nan"), (done.stderr.strip().splitlines() or ["no message"])[-1][:160])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return FirstCall(result["first_s"], f"then a new batch, height and width: {result['other_shape_s'] * 1e3:.3g} ms")


def measure(case: Case, dtype: torch.dtype, name: str, biased: bool, limit_s: float = 120) -> FirstCall:
    """Runs the first call of the ``forward`` or ``forward_backward`` pass in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as empty:
        return _run(case, dtype, name, biased, limit_s, TRITON_CACHE_DIR=empty)


def prepare(cases: Sequence[Case], dtype: torch.dtype, limit_s: float) -> list[str]:
    """Fills the user's own Triton cache with what ``cases`` need, many processes at a time; returns what failed.

    A case that fails here is none the worse: it then compiles, or shows its error, where it is measured.
    """
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 2)) as pool:
        done = pool.map(lambda case: _run(case, dtype, "all", False, limit_s), cases)
        return [f"{case.name}: {one.note}" for case, one in zip(cases, done) if one.first != one.first]


def main(argv: list[str]) -> None:
    name, *numbers, dtype_name, biased = argv
    case = Case(*map(int, numbers))
    from visionattn.kernels.neighborhood import neighborhood_attention

    torch.zeros(1, device="cuda").sum().item()  # the driver's own start-up is not ours

    def seconds(shape: tuple[int, ...], backward: bool, biased: bool) -> float:
        x = [torch.randn(shape, device="cuda", dtype=getattr(torch, dtype_name)) for _ in range(4)]
        side = 2 * case.kernel - 1
        bias = torch.randn(case.heads, side, side, device="cuda") if biased else None
        for tensor in (*x[:3], bias):
            if tensor is not None:
                tensor.requires_grad_(backward)
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = neighborhood_attention(*x[:3], case.kernel, case.dilation, case.stride, bias=bias)
        if backward:
            out.backward(x[3])
        torch.cuda.synchronize()
        return time.perf_counter() - start

    if name == "all":  # what `prepare` asks for
        choices = [(backward, biased) for backward in (False, True) for biased in (False, True)]
    else:
        choices = [(name == "forward_backward", bool(int(biased)))]
    first = sum(seconds(case.shape, *choice) for choice in choices)
    other_shape = (case.batch // 2 + 1, case.height + 5, case.width + 2, case.heads, case.dim)
    other = sum(seconds(other_shape, *choice) for choice in choices)
    print(json.dumps(dict(first_s=first, other_shape_s=other)))


if __name__ == "__main__":
    main(sys.argv[1:])
