"""The simulator's bounds beside the clock: the settings, the words that sum results up, failures that stay lines."""

import random

import pytest
import torch

from visionattn.benchmark import records, simulator
from visionattn.benchmark.cases import SIMULATED, SIMULATED_SMALL, SIMULATOR_GROUPS, Case

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", [*SIMULATED, *SIMULATED_SMALL], ids=lambda case: case.name)
def test_every_setting_fits_a_square_map_and_has_work_enough_for_a_clock(case):
    assert case.height == case.width >= 64 and case.width // case.dilation >= case.kernel >= case.stride >= 1
    assert case.batch * case.heads * case.height * case.width >= 2**19


def test_there_are_thirty_settings_of_either_kind_and_each_stands_once():
    names = [case.name for case in (*SIMULATED, *SIMULATED_SMALL)]
    assert len(SIMULATED) >= 30 and len(set(names)) == len(names)
    pytest.importorskip("triton", reason="our kernel's tiles need triton")
    perfect = [simulator.predict(case, "bfloat16").block_sparse for case in SIMULATED]
    assert sum(perfect) >= 10 and len(perfect) - sum(perfect) >= 10


def keep(path, lines):
    """Records of (case, bound, speed-up, block-sparse)."""
    kept = records.Records(path, records.SIMULATOR_COLUMNS, records.SIMULATOR_KEY)
    for case, bound, speedup, perfect in lines:
        kept.add(op="neighborhood", dtype="bfloat16", **case.columns, block_sparse=perfect, full_ms=10.0, sdpa_ms=5.0,
                 p50_ms=10 / speedup, flop_bound=20.0, bound=bound, speedup=speedup, chunks_a_tile=4.0)  # fmt: skip
    return kept.rows.values()


def test_the_summary_counts_what_refutes_the_bound_and_names_the_worst(tmp_path):
    lines = [(SIMULATED[0], 2.0, 2.2, False), (SIMULATED[1], 4.0, 4.1, False), (SIMULATED[2], 8.0, 5.6, True),
             (SIMULATED[3], 10.0, 9.0, True)]  # fmt: skip
    exceeding, order, perfect = simulator.summary(keep(tmp_path / "a.csv", lines))
    assert exceeding.startswith("1 of 4 settings (25%) exceed the realistic bound by more than 5%")
    assert f"110.0% of it ({SIMULATED[0].name})" in exceeding
    assert "realistic bound 1.000" in order
    assert perfect == (f"perfectly block-sparse settings reach at least 70.0% of their bound ({SIMULATED[2].name}); "
                       "1 of 2 reach less than 75%")  # fmt: skip


def test_rank_correlation_is_spearmans_with_mean_ranks_for_ties(tmp_path):
    random.seed(0)
    bounds = [random.choice((1.0, 2.0, 3.0, 4.0)) for _ in SIMULATED]
    speedups = [random.choice((1.0, 2.0, 3.0)) for _ in SIMULATED]
    rows = simulator.measured(keep(tmp_path / "a.csv", zip(SIMULATED, bounds, speedups, bounds)))
    theirs = pytest.importorskip("torchmetrics.functional").spearman_corrcoef
    columns = (torch.tensor([float(row[name]) for row in rows]) for name in ("speedup", "bound"))
    assert simulator.rank_correlation(rows, "bound") == pytest.approx(theirs(*columns).item(), abs=1e-5)


def test_a_setting_that_fails_keeps_its_line_and_the_others(tmp_path, monkeypatch):
    broken, whole = SIMULATOR_GROUPS["tiny"][:2]
    call = simulator._call

    def fail(case: Case, tensors):
        if case == broken:
            raise RuntimeError("out of luck\nand more")
        return call(case, tensors)

    monkeypatch.setattr(simulator, "_call", fail)
    kept = records.Records(tmp_path / "a.csv", records.SIMULATOR_COLUMNS, records.SIMULATOR_KEY)
    simulator.run((broken, whole), kept, CPU, torch.float32, records.origin(CPU, "abc"), 1.0, True, lambda line: None)
    first, second = records.read(tmp_path / "a.csv", records.SIMULATOR_COLUMNS)
    assert first["note"] == "RuntimeError: out of luck" and not first["speedup"]
    assert float(second["speedup"]) == pytest.approx(float(second["full_ms"]) / float(second["p50_ms"]), rel=1e-3)
    assert simulator.summary(kept.rows.values()) == ["fewer than two settings were measured"]
