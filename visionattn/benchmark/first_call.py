"""How long a user waits for the very first call: a fresh process with an empty Triton cache.

``python -m visionattn.benchmark.first_call forward 128 56 56 2 32 7 1 1 bfloat16 0`` prints the times as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

import visionattn

from .cases import Case


class FirstCall(NamedTuple):
    """Seconds of the first call (not a number where it failed) and what there is to say about it."""

    first: float
    note: str


def measure(case: Case, dtype: torch.dtype, name: str, biased: bool, limit_s: float = 120) -> FirstCall:
    """Runs the first call of the ``forward`` or ``forward_backward`` pass in a new process."""
    values = (*case.shape, case.kernel, case.dilation, case.stride, str(dtype).removeprefix("torch."), int(biased))
    root = str(Path(visionattn.__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as empty:
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = dict(os.environ, TRITON_CACHE_DIR=empty, PYTHONPATH=path)
        command = [sys.executable, "-m", __name__, name, *map(str, values)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return FirstCall(float("nan"), f"no result within {limit_s:.0f} s")
    if done.returncode:
        return FirstCall(float("nan"), (done.stderr.strip().splitlines() or ["no message"])[-1][:160])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return FirstCall(result["first_s"], f"then a new batch, height and width: {result['other_shape_s'] * 1e3:.3g} ms")


def main(argv: list[str]) -> None:
    name, *numbers, dtype_name, biased = argv
    case = Case(*map(int, numbers))
    from visionattn.kernels.neighborhood import neighborhood_attention

    torch.zeros(1, device="cuda").sum().item()  # the driver's own start-up is not ours

    def seconds(shape: tuple[int, ...]) -> float:
        x = [torch.randn(shape, device="cuda", dtype=getattr(torch, dtype_name)) for _ in range(4)]
        side = 2 * case.kernel - 1
        bias = torch.randn(case.heads, side, side, device="cuda") if int(biased) else None
        if name == "forward_backward":
            for tensor in (*x[:3], bias):
                if tensor is not None:
                    tensor.requires_grad_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = neighborhood_attention(*x[:3], case.kernel, case.dilation, case.stride, bias=bias)
        if name == "forward_backward":
            out.backward(x[3])
        torch.cuda.synchronize()
        return time.perf_counter() - start

    first = seconds(case.shape)
    other = seconds((case.batch // 2 + 1, case.height + 5, case.width + 2, case.heads, case.dim))
    print(json.dumps(dict(first_s=first, other_shape_s=other)))


if __name__ == "__main__":
    main(sys.argv[1:])
