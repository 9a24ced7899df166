"""Every kernel compiles, on a machine without a GPU, for every card that is supported, and fits into it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}      # KiB that one program may take, by compute capability
SPILLS = 256            # bytes of stack a thread, a quarter of its registers; more would say that a tile is too large
KEPT_SPILLS = {"backward_q_and_bias": 1024}     # measured faster with them than two kernels that spill nothing
PROGRAM = """
import json, sys, torch
from visionattn.kernels._launch import compile_only

found = []
for capability, d, dtype, op, size, bias, *more in json.loads(sys.argv[1]):
    def empty(side=size):
        return torch.empty(1, side, side, 2, d, dtype=getattr(torch, dtype))
    q, k, v, dq, dk, dv, grad = (empty() for _ in range(7))
    if op == "channel":
        from visionattn.kernels.channel import fused, tuning
        tuning.SLICE, = more                                # whole maps, or slices of them
        with compile_only(capability) as compiled:
            out, weights = fused.forward(q, k, v, 1.0)
            fused.backward(grad, q, k, v, out, weights, 1.0, dq, dk, dv)
        found += [[capability, d, dtype, op, more, size, c.name, c.shared, c.spills] for c in compiled]
        continue
    if op == "depthwise":
        from visionattn.kernels.depthwise import fused
        x, dx, grad = (torch.empty(1, size, size, d, dtype=q.dtype) for _ in range(3))
        weight, added = torch.empty(d, 1, *more * 2), torch.empty(d) if bias else None
        with compile_only(capability) as compiled:
            out, kept = fused.forward(x, x, x, weight, added, True)
            fused.backward(grad, x, x, x, weight, added, out, kept, True, dx, dx, dx, True, bias)
        found += [[capability, d, dtype, op, more, size, c.name, c.shared, c.spills] for c in compiled]
        continue
    rest = ()
    if op == "halo":
        from visionattn.kernels.halo import fused, geometry
        geometry = geometry.make_geometry(*more)
        table, *rest = (torch.zeros(2 * w - 1, d) for w in geometry.window)
        if more[2] > 1:
            q, dq, grad = (empty(-(-size // more[2])) for _ in range(3))
    elif op == "linear":
        from visionattn.kernels.linear import fused
        geometry, table = more, torch.zeros(1, 2, d, 3, 3)
    elif op == "routing":
        from visionattn.kernels.routing import fused, geometry
        geometry, table = geometry.make_geometry(7), torch.zeros(1, 49, more[0], dtype=torch.long)
    elif op == "extra":
        from visionattn.kernels.neighborhood import extra as fused, geometry
        side, tokens = more
        geometry, table = geometry.make_geometry(side, is_causal=True), torch.zeros(2, 2 * side - 1, 2 * side - 1)
        rest = [torch.empty(1, tokens, 2, d, dtype=q.dtype) for _ in range(2)]
    elif op == "neighborhood":
        from visionattn.kernels.neighborhood import fused, geometry
        side, = more
        geometry, table = geometry.make_geometry(side), torch.zeros(2, 2 * side - 1, 2 * side - 1)
    else:
        from visionattn.kernels.window import fused, geometry
        side, shift, partition, shared = more
        geometry, table = geometry.make_geometry(side, shift, partition), torch.zeros(2, 2 * side - 1, 2 * side - 1)
        if shared:
            q, dq = empty(side), empty(side)
    table = table if bias or op in ("halo", "routing") else None
    wanted = [bias and op != "routing"] + [True] * len(rest)
    with compile_only(capability) as compiled:
        out, lse = fused.forward(q, k, v, table, *rest, geometry, 1.0)
        fused.backward(grad, q, k, v, table, *rest, out, lse, geometry, 1.0, dq, dk, dv, *wanted)
    found += [[capability, d, dtype, op, more, size, c.name, c.shared, c.spills] for c in compiled]
print(json.dumps(found))
"""


def _compile(cases: list[tuple]) -> None:
    pytest.importorskip("triton", reason="needs triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(cases)], cwd=Path(__file__).parents[2],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert len({(case[0], case[3], case[6]) for case in found}) >= 2 * len({(case[0], case[3]) for case in cases})
    for capability, *case, shared, spills in found:
        assert shared <= SHARED[capability] * 1024, (capability, case, shared)
        if case[1] != "float32" and case[0] <= 128:     # float32 and 256 are for completeness: no tile would hold them
            limit = KEPT_SPILLS.get(case[-1], SPILLS)
            assert spills is None or spills <= limit, (capability, case, f"{spills} bytes of stack a thread")


def _cases(op: str, capability: int, d: int, dtype: str, biases: tuple[bool, ...]) -> list[tuple]:
    """What an op may be compiled for: its closed and its open kernels."""
    more = {"neighborhood": [(14, 7), (7, 7), (32, 13)],
            "extra": [(14, 7, 17), (14, 7, 16), (7, 7, 1)],
            "window": [(14, 7, 0, "block", False), (14, 7, 3, "block", False), (24, 12, 6, "block", False),
                       (20, 7, 0, "grid", False), (14, 7, 0, "block", True), (14, 14, 0, "block", True),
                       (8, 4, 2, "block", False)],
            "routing": [(14, 16), (35, 16), (56, 1), (30, 4)],
            "halo": [(16, 8, 3, 1), (8, 8, 2, 2), (28, 14, 2, 1), (10, 10, 3, 1)],
            "channel": [(14, 4096), (14, 100)],
            "depthwise": [(56, 3), (7, 1), (56, 5), (56, 7), (14, 7)],
            "linear": [(14, 14, 14)]}[op]
    return [(capability, d, dtype, op, size, bias, *rest) for size, *rest in more for bias in biases]


@pytest.mark.parametrize("op, capability", [
    *(("neighborhood", capability) for capability in SHARED), ("extra", 90),
    *(pytest.param("extra", capability, marks=pytest.mark.slow) for capability in SHARED if capability != 90),
    *(pytest.param(op, capability, marks=[pytest.mark.slow] * (capability in (89, 100))) for op in ("window", "halo")
      for capability in SHARED),
    *(pytest.param("routing", capability, marks=pytest.mark.slow) for capability in SHARED)])
def test_the_models_kernels_fit(capability, op):
    _compile(_cases(op, capability, 32, "bfloat16", (True,))[:3])


def test_the_models_kernels_over_all_tokens_and_of_routes_fit():
    ops = [("channel", capability) for capability in SHARED] + [("linear", 90)]
    routing = _cases("routing", 120, 32, "bfloat16", (False,))[2]               # the largest tiles on the smallest card
    _compile([routing, *(_cases(*op, 32, "bfloat16", (True,))[0] for op in ops)])


def test_a_depthwise_convolution_fits_the_smallest_card():
    _compile(_cases("depthwise", 120, 96, "bfloat16", (True,))[:1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("capability", SHARED)
def test_every_depthwise_convolution_fits(capability, dtype):
    deep = _cases("depthwise", capability, 128, dtype, (False,))[-2:]       # on wide maps too
    _compile(_cases("depthwise", capability, 96, dtype, (True,)) + deep)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["neighborhood", "extra", "window", "halo", "routing", "channel", "linear"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("d", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_fits(capability, d, dtype, op):
    if op == "channel" and d > 128:
        pytest.skip("so many channels a group run the reference")
    _compile(_cases(op, capability, d, dtype, (False, True)))
