"""How a call is timed and its memory counted, on a GPU or a CPU."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# Below this time the CPU's launches may be what is measured.
HOST_BOUND_MS = 1.0
BURSTS = 3


class Timing(NamedTuple):
    """Percentiles of one call's time in milliseconds."""

    p20: float
    p50: float
    p80: float


def measure(fn: Callable[[], object], device: torch.device, rep_ms: float = 40.0) -> Timing:
    """Time of ``fn()``, repeated for about ``rep_ms`` after a warm-up.

    On a GPU the L2 cache is flushed before every call and the time is the device's, launch gaps included where the CPU
    is slower than the GPU: what a user sees. Calls that the CPU may bound are timed in several bursts, of which the
    fastest counts: others' work on a shared host comes and goes within milliseconds, and slows launches by two.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        def burst() -> Timing:
            return Timing(*do_bench(fn, warmup=max(5.0, rep_ms / 4), rep=rep_ms, quantiles=[0.2, 0.5, 0.8]))

        return least_disturbed(burst)
    fn()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < rep_ms and len(times) < 100):
        start = time.perf_counter()
        fn()
        times.append((time.perf_counter() - start) * 1e3)
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(cuts[1], statistics.median(times), cuts[7])


def least_disturbed(burst: Callable[[], Timing]) -> Timing:
    """The fastest of ``BURSTS`` by its median; one is enough where a call takes so long that the CPU is ahead."""
    found = [burst()]
    if found[0].p50 < HOST_BOUND_MS:
        found += [burst() for _ in range(BURSTS - 1)]
    return min(found, key=lambda timing: timing.p50)


def measure_graph(fn: Callable[[], object], rep_ms: float = 20.0) -> Timing | None:
    """Time of ``fn()`` replayed as a CUDA graph, so without the CPU's launch gaps; None where it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # allocations and lazy set-up must not happen during the capture
            for _ in range(2):
                fn()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            fn()
        return measure(graph.replay, torch.device("cuda"), rep_ms)
    except Exception:  # peers raise all kinds; a missing figure is the honest answer
        torch.cuda.synchronize()
        return None


def quick(fn: Callable[[], object], best_ms: float = float("inf"), repeats: int = 3) -> float:
    """A rough time of ``fn()`` on the GPU in milliseconds, for choosing among many configurations.

    The first call warms up; a second that takes more than twice ``best_ms`` ends it there.
    """
    fn()
    times: list[float] = []
    for _ in range(1 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
        if times[0] > 2 * best_ms:
            break
    return min(times)


def peak_mib(fn: Callable[[], object], device: torch.device) -> float | None:
    """The most GPU memory ``fn()`` holds beyond what was allocated before it, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fn()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


class Rates(NamedTuple):
    """What the machine does at best, measured: bytes moved and floating-point operations per millisecond."""

    bytes_per_ms: float
    flops_per_ms: float

    def __str__(self) -> str:
        return f"copy {self.bytes_per_ms / 1e9:.2f} TB/s, matmul {self.flops_per_ms / 1e9:.3g} TFLOP/s"


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Rates of a large copy (read and written bytes both count) and of a large square matrix product in ``dtype``."""
    on_gpu = device.type == "cuda"
    element = torch.empty(0, dtype=dtype).element_size()
    count = 2**30 if on_gpu else 2**20
    copy = measure(torch.empty(count, dtype=dtype, device=device).normal_().clone, device).p50
    side = 8192 if on_gpu else 128
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = measure(lambda: a @ b, device).p50
    return Rates(2 * count * element / copy, 2 * side**3 / product)
