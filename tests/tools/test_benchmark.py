"""The benchmark tool from its command line: real runs on a CPU, pictures, and errors in one line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionattn.benchmark import records
from visionattn.benchmark.cases import (
    TINY,
    TINY_CHANNELS,
    TINY_HALOS,
    TINY_LINEAR,
    TINY_ROUTES,
    TINY_VARIED,
    TINY_WINDOWS,
)
from visionattn.benchmark.cli import main
from visionattn.benchmark.depthwise_cases import TINY_DEPTHWISE
from visionattn.training.shapes import Shapes

ROOT = Path(__file__).resolve().parents[2]


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def kernels_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "cpu_kernels.csv"
    argv = ["kernels", "--op", "neighborhood", "--device", "cpu", "--rows", "tiny", "--dtype", "float32", "--rep", "1"]
    assert main([*argv, "--out", str(path)]) == 0
    return path


def _beside_timm(op, folder):
    path = folder / f"cpu_{op}.csv"
    argv = ["kernels", "--op", op, "--device", "cpu", "--rows", "tiny", "--dtype", "float32", "--rep", "1"]
    assert main([*argv, "--no-compiled", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def window_csv(tmp_path_factory):
    return _beside_timm("window", tmp_path_factory.mktemp("window"))


@pytest.fixture(scope="module")
def halo_csv(tmp_path_factory):
    return _beside_timm("halo", tmp_path_factory.mktemp("halo"))


@pytest.fixture(scope="module")
def routing_csv(tmp_path_factory):
    return _beside_timm("routing", tmp_path_factory.mktemp("routing"))


@pytest.fixture(scope="module")
def simulator_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulator") / "cpu_simulator.csv"
    argv = ["simulator", "--device", "cpu", "--rows", "tiny", "--dtype", "float32", "--rep", "1", "--out", str(path)]
    assert main(argv) == 0
    return path


@pytest.fixture(scope="module")
def channel_csv(tmp_path_factory):
    return _beside_timm("channel", tmp_path_factory.mktemp("channel"))


@pytest.fixture(scope="module")
def varied_window_csv(tmp_path_factory):
    return _beside_timm("varied_window", tmp_path_factory.mktemp("varied_window"))


@pytest.fixture(scope="module")
def linear_csv(tmp_path_factory):
    return _beside_timm("linear", tmp_path_factory.mktemp("linear"))


@pytest.fixture(scope="module")
def depthwise_csv(tmp_path_factory):
    return _beside_timm("depthwise", tmp_path_factory.mktemp("depthwise"))


@pytest.fixture(scope="module")
def models_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "cpu_models.csv"
    argv = ["models", "--models", "gna_nano", "timm/resnet10t", "--device", "cpu", "--dtype", "float32"]
    assert main([*argv, "--batch", "2", "--size", "32", "--steps", "1", "--out", str(path)]) == 0
    return path


def test_kernels_csv_has_every_column_and_every_measurement(kernels_csv):
    rows = lines(kernels_csv)
    assert tuple(rows[0]) == records.KERNEL_COLUMNS
    implementations = {"floor", "ours", "ours packed", "ours bias", "ours packed bias", "sdpa", "natten"}
    found = {(row["height"], row["implementation"], row["pass"]) for row in rows}
    assert (
        found
        == {(str(case.height), i, p) for case in TINY for i in implementations for p in ("forward", "forward_backward")}
        and len(rows) == len(TINY) * len(implementations) * 2
    )
    for row in rows:
        assert row["torch"] == torch.__version__ and row["gpu"].startswith("CPU")
        if row["implementation"] == "natten":
            assert not row["p50_ms"] and "GPU" in row["note"]
        else:
            assert float(row["p50_ms"]) > 0 and not row["note"], row


def test_linear_csv_has_every_measurement_and_eager_pytorch_gives_the_same(linear_csv):
    rows = lines(linear_csv)
    assert tuple(rows[0]) == records.LINEAR_COLUMNS
    found = {(row["height"], row["before"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.height), str(case.before), i, p)
        for case in TINY_LINEAR
        for i in ("floor", "ours", "ours plain", "eager", "eager plain")
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    peers = ("eager", "eager plain")
    notes = {row["note"] for row in rows if row["implementation"] in peers}
    assert notes == {f"from {peer}: output 0.00%, gradients 0.00%" for peer in peers}


def test_depthwise_csv_has_every_measurement_and_torchs_convolution_gives_the_same(depthwise_csv):
    rows = lines(depthwise_csv)
    assert tuple(rows[0]) == records.DEPTHWISE_COLUMNS
    found = {(row["channels"], row["side"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.channels), str(case.side), i, p)
        for case in TINY_DEPTHWISE
        for i in ("floor", "ours", "conv2d")
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] == "conv2d"}
    assert notes == {"from conv2d: output 0.00%, gradients 0.00%"}


def test_window_csv_has_every_measurement_and_timms_path_gives_the_same(window_csv):
    rows = lines(window_csv)
    assert tuple(rows[0]) == records.WINDOW_COLUMNS
    found = {(row["height"], row["shift"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.height), str(case.shift), i, p)
        for case in TINY_WINDOWS
        for i in ("floor", "ours", "ours plain", "timm")
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] == "timm"}
    assert notes == {"from timm: output 0.00%, gradients 0.00%"}


def test_halo_csv_has_every_measurement_and_timms_layer_gives_the_same(halo_csv):
    rows = lines(halo_csv)
    assert tuple(rows[0]) == records.HALO_COLUMNS
    found = {(row["dim_v"], row["stride"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.dim_v), str(case.stride), i, p)
        for case in TINY_HALOS
        for i in ("floor", "ours", "timm")
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] == "timm"}
    assert notes == {"from timm: output 0.00%, gradients 0.00%"}


def test_routing_csv_has_every_measurement_and_gathering_gives_the_same(routing_csv):
    rows = lines(routing_csv)
    assert tuple(rows[0]) == records.ROUTING_COLUMNS
    found = {(row["topk"], row["regions"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.topk), str(case.regions), i, p)
        for case in TINY_ROUTES
        for i in ("floor", "ours", "gather", "select")
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] in ("gather", "select")}
    assert notes == {f"from {peer}: output 0.00%, gradients 0.00%" for peer in ("gather", "select")}


def test_simulator_csv_has_the_bounds_and_the_measured_speedup_of_every_setting(simulator_csv, capsys):
    rows = lines(simulator_csv)
    assert tuple(rows[0]) == records.SIMULATOR_COLUMNS
    settings = {(row["kernel"], row["stride"], row["dilation"]) for row in rows}
    assert settings == {("3", "1", "1"), ("4", "4", "1"), ("2", "2", "2")}
    for row in rows:
        pairs = (int(row["height"]) * int(row["width"]) / int(row["kernel"]) ** 2, float(row["flop_bound"]))
        assert pairs[0] == pytest.approx(pairs[1], rel=1e-3) and not row["note"]
        assert float(row["speedup"]) == pytest.approx(float(row["full_ms"]) / float(row["p50_ms"]), rel=2e-3)
        assert float(row["bound"]) > 0 and float(row["sdpa_ms"]) > 0 and row["block_sparse"] in ("True", "False")


def test_channel_csv_has_every_measurement_and_every_form_gives_the_same(channel_csv):
    rows = lines(channel_csv)
    assert tuple(rows[0]) == records.CHANNEL_COLUMNS
    forms = ("timm", "sdpa", "tokens first", "channels first")
    found = {(row["height"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.height), i, p)
        for case in TINY_CHANNELS
        for i in ("floor", "ours", *forms)
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] in forms}
    assert notes == {f"from {form}: output 0.00%, gradients 0.00%" for form in forms}


def test_varied_window_csv_has_every_measurement_and_grid_sample_gives_the_same(varied_window_csv):
    rows = lines(varied_window_csv)
    assert tuple(rows[0]) == records.VARIED_COLUMNS
    forms = ("grid_sample", "grid_sample sdpa")
    found = {(row["height"], row["spread"], row["implementation"], row["pass"]) for row in rows}
    assert found == {
        (str(case.height), "2", i, p)
        for case in TINY_VARIED
        for i in ("floor", "ours", *forms)
        for p in ("forward", "forward_backward")
    }
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    notes = {row["note"] for row in rows if row["implementation"] in forms}
    assert notes == {f"from {form}: output 0.00%, gradients 0.00%" for form in forms}


def test_a_second_run_replaces_its_lines(kernels_csv, capsys):
    before = lines(kernels_csv)
    argv = [
        "kernels",
        "--device",
        "cpu",
        "--rows",
        "tiny",
        "--dtype",
        "float32",
        "--rep",
        "1",
        "--out",
        str(kernels_csv),
    ]
    assert main(argv) == 0
    assert len(lines(kernels_csv)) == len(before)
    printed = capsys.readouterr().out
    assert "natten / ours" in printed and f"written: {kernels_csv}" in printed


def test_time_budget_leaves_out_rows_and_says_so(tmp_path, capsys):
    argv = ["kernels", "--device", "cpu", "--rows", "tiny", "--dtype", "float32", "--time-budget", "1e-6"]
    assert main([*argv, "--out", str(tmp_path / "a.csv")]) == 0
    assert "3 of 3 rows left out" in capsys.readouterr().out


def test_models_csv_has_training_and_inference_of_ours_and_timms(models_csv):
    rows = lines(models_csv)
    assert tuple(rows[0]) == records.MODEL_COLUMNS
    assert [(row["model"], row["pass"]) for row in rows] == [
        (model, one) for model in ("gna_nano", "timm/resnet10t") for one in ("training", "inference")
    ]
    assert all(float(row["images_per_s"]) > 0 and float(row["parameters_m"]) > 1 and not row["note"] for row in rows)


def test_models_compiled_side_by_side_are_the_same_models(models_csv, tmp_path):
    argv = ["models", "--models", "gna_nano", "reference/gna_nano", "--device", "cpu", "--dtype", "float32"]
    argv += ["--batch", "2", "--size", "32", "--steps", "1", "--passes", "inference", "--jobs", "2"]
    assert main([*argv, "--out", str(tmp_path / "m.csv")]) == 0
    rows = records.read(tmp_path / "m.csv", records.MODEL_COLUMNS)
    assert [row["model"] for row in rows] == ["gna_nano", "reference/gna_nano"]
    assert all(float(row["images_per_s"]) > 0 and not row["note"] for row in rows)
    assert rows[0]["parameters_m"] == lines(models_csv)[0]["parameters_m"]


def test_data_csv_has_our_rate_and_timms(tmp_path, capsys):
    images = Shapes("train", 16, 40)
    for i in range(len(images)):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        images[i][0].save(path)
    argv = ["data", "--root", str(tmp_path), "--batch", "4", "--size", "32", "--batches", "3"]
    assert main([*argv, "--out", str(tmp_path / "d.csv")]) == 0
    rows = records.read(tmp_path / "d.csv", records.DATA_COLUMNS)
    assert [row["implementation"] for row in rows] == ["ours", "timm"]
    assert all(float(row["images_per_s"]) == float(row["images_per_s_core"]) > 0 for row in rows)
    assert "ours / timm: " in capsys.readouterr().out
    assert main([*argv, "--batch", "99", "--out", str(tmp_path / "d.csv")]) == 2
    assert "--batch is 99, but" in capsys.readouterr().err


def test_loop_csv_has_the_loop_and_its_bare_step(tmp_path, capsys):
    argv = ["loop", "--model", "resnet10t", "--batch", "4", "--size", "32", "--steps", "4", "--workers", "0"]
    assert main([*argv, "--device", "cpu", "--out", str(tmp_path / "loop.csv")]) == 0
    rows = records.read(tmp_path / "loop.csv", records.LOOP_COLUMNS)
    assert [row["implementation"] for row in rows] == ["loop", "bare step"]
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert "the loop costs " in capsys.readouterr().out
    assert not torch.are_deterministic_algorithms_enabled()


PLOTTED = ("kernels", "window", "halo", "routing", "channel", "linear", "varied_window", "depthwise", "models",
           "simulator")  # fmt: skip


def test_plot_draws_a_picture_of_each_kind(request, tmp_path):
    files = [str(request.getfixturevalue(f"{name}_csv")) for name in PLOTTED]
    assert main(["plot", *files, "--out-dir", str(tmp_path / "figures")]) == 0
    for name in PLOTTED:
        data = (tmp_path / "figures" / f"cpu_{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000
    assert len(list((tmp_path / "figures").iterdir())) == len(PLOTTED)


BAD = {
    "no command": ([], "kernels|simulator|models|fused|loop|data|plot|report"),
    "unknown op": (["kernels", "--op", "convolution"], "neighborhood"),
    "rows of another op": (
        ["kernels", "--op", "window", "--rows", "gna", "--device", "cpu"],
        "--rows must be one of all, classifier, tiny for --op window, got gna",
    ),
    "unknown rows": (["kernels", "--rows", "most"], "tiny"),
    "unknown settings": (["simulator", "--rows", "most"], "'all', 'small', 'tiny'"),
    "negative budget": (["kernels", "--time-budget", "-1"], "must be a positive number, got '-1'"),
    "no models": (["models"], "--models"),
    "unknown model": (["models", "--models", "gna_huge", "--device", "cpu"], "gna_tiny"),
    "batch of nothing": (
        ["models", "--models", "gna_nano", "--batch", "0"],
        "must be a positive whole number, got '0'",
    ),
    "missing csv": (["plot", "/nowhere/a.csv"], "/nowhere/a.csv"),
}
if not torch.cuda.is_available():
    BAD["no gpu"] = (["kernels"], "no CUDA device")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, capsys):
    argv, expected = BAD[name]
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = leaving.code
    error = capsys.readouterr().err
    assert code == 2
    assert expected in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_file_that_holds_no_results_is_refused(tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert main(["plot", str(other)]) == 2
    assert main(["kernels", "--device", "cpu", "--rows", "tiny", "--out", str(other)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert other.read_text() == "a,b\n1,2\n"


def test_the_door_under_tools_runs_as_a_script(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "plot"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "visionattn benchmark plot: error: no CSV file given and none in benchmarks/\n"
