"""Timing and memory on a CPU; the GPU side is a door to Triton's own timer."""

import time

import pytest
import torch

from visionattn.benchmark import timing

CPU = torch.device("cpu")


def test_percentiles_are_ordered_and_about_right():
    result = timing.measure(lambda: time.sleep(0.002), CPU, rep_ms=20)
    assert 2.0 <= result.p20 <= result.p50 <= result.p80


def test_a_slow_call_is_repeated_no_more_than_needed():
    calls = []
    timing.measure(lambda: (calls.append(0), time.sleep(0.005)), CPU, rep_ms=0.1)
    assert len(calls) == 4  # one warms up, three are timed


def test_of_bursts_that_the_host_may_bound_the_least_disturbed_counts():
    bursts = iter([timing.Timing(0.5, 0.6, 0.9), timing.Timing(0.1, 0.2, 0.8), timing.Timing(0.3, 0.4, 0.5)])
    assert timing.least_disturbed(lambda: next(bursts)).p50 == 0.2
    long = iter([timing.Timing(1.9, 2.0, 2.1)])
    assert timing.least_disturbed(lambda: next(long)).p50 == 2.0


def test_rates_are_positive_and_read_in_the_usual_units():
    rates = timing.measure_rates(CPU, torch.float32)
    assert min(rates) > 0
    assert str(timing.Rates(4.1e9, 7.8e11)) == "copy 4.10 TB/s, matmul 780 TFLOP/s"


def test_memory_is_not_reported_on_a_cpu():
    assert timing.peak_mib(lambda: None, CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_times_a_graph_and_counts_the_memory_beyond_the_inputs():
    x = torch.randn(1 << 22, device="cuda")
    result = timing.measure(lambda: x * 2, torch.device("cuda"), rep_ms=5)
    assert 0 < result.p20 <= result.p80
    assert timing.measure_graph(lambda: x * 2, rep_ms=5).p50 > 0
    assert timing.peak_mib(lambda: x * 2, torch.device("cuda")) == pytest.approx(16)
