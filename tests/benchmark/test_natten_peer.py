"""The search through the peer's configurations, with made-up times: it must be fair to the peer and bounded in time."""

import time
from types import SimpleNamespace

import pytest
import torch

from visionattn.benchmark import natten_peer
from visionattn.benchmark.cases import Case
from visionattn.benchmark.natten_peer import Config


@pytest.fixture
def times(monkeypatch):
    """Configurations whose first option is their time; a negative one fails to run."""

    def quick(call, best_ms=float("inf"), repeats=3):
        return call()

    monkeypatch.setattr(natten_peer, "quick", quick)

    def make(config):
        def call():
            value = dict(config.options)["ms"]
            if value < 0:
                raise RuntimeError("does not fit")
            return value

        return call

    return make


def configs(*values):
    return iter([Config("cutlass-fna", (("ms", value),)) for value in values])


def test_the_fastest_come_first_and_failures_are_counted(times):
    found, tried = natten_peer.screen(configs(3.0, -1.0, 1.0, 2.0), times, time.monotonic() + 60)
    assert [ms for ms, _ in found] == [1.0, 2.0, 3.0]
    assert tried == "best of 3, 1 did not run"


def test_what_the_deadline_leaves_out_is_said(times):
    found, tried = natten_peer.screen(configs(1.0, 2.0), times, time.monotonic() - 1)
    assert not found and tried == "best of 0, 2 left out for time"


def test_backends_are_tried_in_turn_so_that_a_cut_search_has_seen_all():
    a, b = (
        [Config(name, (("ms", i),)) for i in range(count)] for name, count in (("hopper-fna", 1), ("cutlass-fna", 3))
    )
    assert [c.backend[0] for c in natten_peer._interleave([a, b])] == ["h", "c", "c", "c"]


def test_configuration_reads_as_text_without_spaces_in_its_tiles():
    assert (
        str(Config("cutlass-fna", (("q_tile_shape", (8, 8)), ("kv_tile_shape", (4, 16))))) == "cutlass-fna (8,8) (4,16)"
    )


def test_no_gpu_is_a_reason_not_an_error():
    assert "GPU" in natten_peer.why_not(torch.device("cpu"))


@pytest.mark.parametrize(
    "taken, expected", [("natten", {"backend": "fused"}), ("fused (triton)", {}), ("reference", {})]
)
def test_what_is_measured_as_ours_is_never_nattens(taken, expected, monkeypatch):
    seen = []

    def explain(op, q, k, v, *args):
        seen.append((op, tuple(q.shape), q.dtype, *args))
        return SimpleNamespace(runs=taken)

    monkeypatch.setattr(natten_peer, "explain", explain)
    natten_peer.route.cache_clear()
    case = Case(1, 256, 256, 24, 128, 80, 1, 16)
    assert natten_peer.route(case, torch.bfloat16, torch.device("cpu")) == expected
    assert seen == [("neighborhood_attention", case.shape, torch.bfloat16, 80, 1, 16)]
    natten_peer.route.cache_clear()
