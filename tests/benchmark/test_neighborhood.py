"""A run with a peer at hand: a stand-in for NATTEN that computes with our own op, on a CPU."""

import sys
import time
import types

import pytest
import torch

from visionattn.benchmark import natten_peer, neighborhood, records
from visionattn.benchmark.cases import Case
from visionattn.kernels import neighborhood_attention

CPU = torch.device("cpu")
WHOLE, PART = Case(1, 5, 5, 1, 8, 5), Case(1, 8, 9, 1, 8, 3, dilation=2, stride=2)


@pytest.fixture
def calls(monkeypatch):
    """The keyword arguments of every call of the stand-in."""
    seen = []

    def na2d(q, k, v, kernel_size, dilation, stride, **options):
        seen.append(options)
        return neighborhood_attention(q, k, v, kernel_size, dilation, stride)

    backends = types.ModuleType("natten.backends")
    for kind, tile, other in (("fna", (8, 8), (4, 4)), ("fmha", 64, 128)):
        for family in ("cutlass_hopper", "cutlass_blackwell", "cutlass"):
            hopper, blackwell = "hopper" in family, "blackwell" in family
            forward = [((tile, other), "schedule")] if hopper else [(tile, tile), (tile, other)]
            backward = [(tile, tile), (other, other)]
            for name, found in (
                (f"get_configs_for_{family}_{kind}", forward),
                (f"get_bwd_configs_for_{family}_{kind}", backward),
            ):
                setattr(backends, name, lambda *tensors, found=found, none=blackwell: [] if none else found)
    natten = types.ModuleType("natten")
    natten.na2d, natten.backends = na2d, backends
    monkeypatch.setitem(sys.modules, "natten", natten)
    monkeypatch.setitem(sys.modules, "natten.backends", backends)
    monkeypatch.setattr(natten_peer, "why_not", lambda device: None)

    def quick(call, best_ms=float("inf"), repeats=3):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    monkeypatch.setattr(natten_peer, "quick", quick)
    measure = natten_peer.measure
    monkeypatch.setattr(natten_peer, "measure", lambda call, device, rep_ms: measure(call, CPU, rep_ms))
    return seen


def run(tmp_path, *cases):
    kept = records.Records(tmp_path / "a.csv", records.KERNEL_COLUMNS, records.KERNEL_KEY)
    said = []
    origin = records.origin(CPU, "abc")
    neighborhood.run(
        cases,
        kept,
        CPU,
        torch.float32,
        origin,
        budget_s=60,
        rep_ms=1,
        graphs=False,
        first_calls=True,
        prepare=True,
        say=said.append,
    )
    return {(row["implementation"], row["pass"]): row for row in kept.rows.values()}, said


def test_the_peers_best_configuration_is_kept_and_compared_with_ours(tmp_path, calls):
    rows, _ = run(tmp_path, PART)
    forward, both = rows["natten", "forward"], rows["natten", "forward_backward"]
    assert forward["config"].split()[0] in ("hopper-fna", "cutlass-fna") and float(forward["p50_ms"]) > 0
    assert forward["note"] == "best of 3; from NATTEN: output 0.00%, gradients 0.00%"
    # Two backward configurations behind the fastest forward of each of two backends.
    assert both["note"].startswith("best of 4;")
    assert {"backward_q_tile_shape", "backward_kv_tile_shape"} <= {name for options in calls for name in options}


def test_a_neighborhood_of_the_whole_map_tries_the_tiles_of_plain_attention(tmp_path, calls):
    rows, _ = run(tmp_path, WHOLE)
    assert rows["natten", "forward"]["config"].split()[0] in ("hopper-fmha", "cutlass-fmha")
    assert all(set(options) == {"attention_kwargs"} for options in calls)
    assert {"q_tile_size", "backward_kv_splits"} <= {name for options in calls for name in options["attention_kwargs"]}


def test_the_peer_is_given_the_same_neighborhood(tmp_path, calls, monkeypatch):
    asked = []
    natten = sys.modules["natten"]
    na2d = natten.na2d
    monkeypatch.setattr(
        natten, "na2d", lambda *a, **k: (asked.append((k["kernel_size"], k["dilation"], k["stride"])), na2d(*a, **k))[1]
    )
    run(tmp_path, PART)
    assert set(asked) == {(3, 2, 2)}


def test_an_error_in_one_measurement_is_noted_and_the_others_stay(tmp_path, calls, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of everything\nand more")

    monkeypatch.setattr(neighborhood, "neighborhood_attention_packed", broken)
    rows, _ = run(tmp_path, PART)
    assert rows["ours packed", "forward"]["note"] == "RuntimeError: out of everything"
    assert not rows["ours packed", "forward"]["p50_ms"]
    assert float(rows["ours", "forward"]["p50_ms"]) > 0 and float(rows["natten", "forward"]["p50_ms"]) > 0


def test_a_peer_that_fails_altogether_is_noted(tmp_path, calls, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(sys.modules["natten"], "na2d", broken)
    rows, said = run(tmp_path, PART)
    assert rows["natten", "forward"]["note"] == "no configuration ran"
    assert "natten -/-" in said[-1]


def test_packed_and_separate_inputs_hold_the_same_numbers():
    x = neighborhood.Inputs(PART, CPU, torch.float32)
    assert torch.equal(torch.stack(x.separate, 3), x.packed)
    assert all(one.is_contiguous() and one.is_leaf for one in x.separate)
