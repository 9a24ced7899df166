"""The table and the speed-up lines that a run ends with."""

import pytest

from visionattn.benchmark import records, summary
from visionattn.benchmark.cases import BIFORMER, CLASSIFIER, DAVIT, HALONET50TS, INLINE, SWIN, WIDE
from visionattn.benchmark.depthwise_cases import DEPTHWISE


@pytest.fixture
def kept(tmp_path):
    return records.Records(tmp_path / "a.csv", records.KERNEL_COLUMNS, records.KERNEL_KEY)


def add(kept, case, implementation, name, ms, dtype="bfloat16"):
    numbers = dict(batch=case.batch, height=case.height, width=case.width, heads=case.heads, dim=case.dim)
    numbers |= dict(kernel=case.kernel, dilation=case.dilation, stride=case.stride)
    kept.add(
        op="neighborhood",
        dtype=dtype,
        **numbers,
        implementation=implementation,
        **{"pass": name},
        p50_ms=ms,
        gpu="a GPU",
    )


def test_speedup_is_the_geometric_mean_over_the_classifier_rows_and_names_the_slowest_of_all(kept):
    for case, natten in zip(CLASSIFIER[:2], (2.0, 8.0)):
        add(kept, case, "ours", "forward", 1.0)
        add(kept, case, "natten", "forward", natten)
    add(kept, WIDE[0], "ours", "forward", 2.0)
    add(kept, WIDE[0], "natten", "forward", 1.0)
    (line,) = summary.speedups(summary.by_case(kept.rows.values()))
    assert line.startswith("ours, fwd: 4.00x")
    assert "2 of 6" in line and f"slowest row 0.50x ({WIDE[0].name})" in line


def test_rows_without_the_peer_do_not_count(kept):
    add(kept, CLASSIFIER[0], "ours", "forward", 1.0)
    add(kept, CLASSIFIER[0], "natten", "forward", None)
    table = summary.by_case(kept.rows.values())
    assert summary.speedups(table) == ["no speed-up over NATTEN: it was not measured"]
    assert "1 / -" in summary.render(table)


def test_table_shows_both_passes_and_the_ratio(kept):
    for name, ours, natten in (("forward", 0.5, 1.0), ("forward_backward", 2.0, 6.0)):
        add(kept, CLASSIFIER[0], "ours", name, ours)
        add(kept, CLASSIFIER[0], "natten", name, natten)
    last = summary.render(summary.by_case(kept.rows.values())).splitlines()[-1]
    assert last.startswith(CLASSIFIER[0].name) and last.endswith("2.00x / 3.00x") and "0.5 / 2" in last


def test_dtypes_are_not_mixed(kept):
    add(kept, CLASSIFIER[0], "ours", "forward", 1.0, dtype="float16")
    assert not summary.by_case(kept.rows.values(), dtype="bfloat16")


@pytest.mark.parametrize(
    "op, peer, cases",
    [("window", "timm", SWIN[:2]), ("halo", "timm", HALONET50TS[:2]), ("linear", "eager", INLINE[:2]),
     ("depthwise", "conv2d", DEPTHWISE[:2])],  # fmt: skip
)
def test_ops_are_set_against_their_one_peer_and_the_floor(op, peer, cases, tmp_path):
    kept = records.Records(tmp_path / "b.csv", *records.KERNEL_RECORDS[op])
    for case, ms in zip(cases, (1.0, 4.0)):
        for implementation, factor in (("floor", 0.5), ("ours", 1.0), (peer, 9.0), (f"{peer} compiled", 3.0)):
            kept.add(op=op, **case.columns, implementation=implementation, **{"pass": "forward"}, p50_ms=ms * factor)
    table = summary.by_case(kept.rows.values(), op)
    assert list(table) == list(cases)
    lines = summary.speedups(table, op)
    assert [line.split(" (")[0] for line in lines] == [f"ours, fwd: {r:.2f}x" for r in (9, 3, 0.5)]
    assert [line.split(" as fast as ")[0][-13:] for line in lines] == [f"(least {r:.2f}x)" for r in (9, 3, 0.5)]
    assert summary.render(table, op).splitlines()[1].endswith("9.00x / -")


def test_channels_are_set_against_the_fastest_other_form_case_by_case(tmp_path):
    kept = records.Records(tmp_path / "b.csv", *records.KERNEL_RECORDS["channel"])
    times = {"floor": (0.5, 0.5), "ours": (1, 1), "timm": (9, 4), "sdpa compiled": (6, 8), "tokens first": (None, 16)}
    for implementation, row in times.items():
        for case, ms in zip(DAVIT, row):
            kept.add(op="channel", **case.columns, implementation=implementation, **{"pass": "forward"}, p50_ms=ms)
    table = summary.by_case(kept.rows.values(), "channel")
    line = summary.speedups(table, "channel")[0]
    assert line.startswith("ours, fwd: 4.90x (least 4.00x) as fast as the fastest other form (geometric mean of 2 of 8")
    assert summary.render(table, "channel").splitlines()[1].endswith("6.00x / -")


def test_memory_is_the_largest_share_of_each_peers_peak(tmp_path):
    kept = records.Records(tmp_path / "c.csv", *records.KERNEL_RECORDS["routing"])
    for case, ours in zip(BIFORMER[:2], (10, 30)):
        for implementation, mib in (("ours", ours), ("gather", 100.0)):
            name = {"pass": "forward_backward"}
            kept.add(op="routing", **case.columns, implementation=implementation, **name, p50_ms=1.0, peak_mib=mib)
    (line,) = summary.memory(summary.by_case(kept.rows.values(), "routing"), "routing")
    assert line == f"ours, fwd+bwd: at most 0.30x the peak memory of gathering ({BIFORMER[1].name})"
