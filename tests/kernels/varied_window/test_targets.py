"""Every kernel compiles, on a machine without a GPU, for every card that is supported, and fits into it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}      # KiB that one program may take, by compute capability
SPILLS = 256            # bytes of stack a thread, a quarter of its registers; more would say that a tile is too large
PROGRAM = """
import json, sys, torch
from visionattn.kernels._launch import compile_only
from visionattn.kernels.varied_window import fused
from visionattn.kernels.window.geometry import make_geometry

found = []
for capability, d, dtype, window, bias in json.loads(sys.argv[1]):
    q, k, v, dq, dk, dv, grad = (torch.empty(1, 14, 14, 2, d, dtype=getattr(torch, dtype)) for _ in range(7))
    geometry, table = make_geometry(window), torch.zeros(2, 2 * window - 1, 2 * window - 1) if bias else None
    places = torch.zeros(1, *geometry.map_windows(14, 14), 2, 4)
    with compile_only(capability) as compiled:
        out, lse = fused.forward(q, k, v, places, table, geometry, 1.0)
        fused.backward(grad, q, k, v, places, table, out, lse, geometry, 1.0, dq, dk, dv, True, bias)
    found += [[capability, d, dtype, window, bias, c.name, c.shared, c.spills] for c in compiled]
print(json.dumps(found))
"""


def _compile(cases: list[tuple]) -> None:
    pytest.importorskip("triton", reason="needs triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(cases)], cwd=Path(__file__).parents[3],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert len(found) == sum(4 if case[4] else 3 for case in cases)
    for capability, *case, shared, spills in found:
        assert shared <= SHARED[capability] * 1024, (capability, case, shared)
        if case[1] != "float32" and case[0] <= 32:           # the models'; more is for completeness
            assert spills is None or spills <= SPILLS, (capability, case, f"{spills} bytes of stack a thread")


def test_the_models_kernels_fit():
    _compile([(90, 32, "bfloat16", 7, True)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("d", [16, 32, 64, 128])
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_fits(capability, d, dtype):
    if dtype == "float32" and d > 64:
        pytest.skip("runs the reference: some cards lack the shared memory")
    _compile([(capability, d, dtype, window, bias) for window in (4, 7) for bias in (False, True)])
