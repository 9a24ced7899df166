"""The report: every figure from the CSV files that there are, the tables of a README, and losses told as losses."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from visionattn.benchmark import figures, readme, records, report
from visionattn.benchmark.cases import CLASSIFIER, SWIN, WIDE
from visionattn.benchmark.cli import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sizes", "headlines", "overviews", "kernels", "models", "ops", "simulator", "camvid", "fused")
ORIGIN = dict(gpu="a GPU", torch="9.9")


def add_kernel(kept, op, case, implementation, forward, both, **more):
    for name, ms in (("forward", forward), ("forward_backward", both)):
        kept.add(op=op, dtype="bfloat16", **case.columns, implementation=implementation, p50_ms=ms, **ORIGIN, **more,
                 **{"pass": name})  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Measurements of a machine: ours ahead of NATTEN on one shape and behind on another, windows, and two models."""
    kernels = records.Records(tmp_path / "card_kernels.csv", *records.KERNEL_RECORDS["neighborhood"])
    for case, ours, natten in ((CLASSIFIER[0], 1.0, 4.0), (WIDE[0], 8.0, 2.0)):
        columns = {name: getattr(case, name) for name in ("batch", "height", "width", "heads", "dim")}
        columns |= dict(kernel=case.kernel, dilation=case.dilation, stride=case.stride)
        for implementation, ms in (("floor", 0.5), ("ours", ours), ("natten", natten)):
            for name in ("forward", "forward_backward"):
                kernels.add(op="neighborhood", dtype="bfloat16", **columns, implementation=implementation, p50_ms=ms,
                            **ORIGIN, **{"pass": name})  # fmt: skip
    windows = records.Records(tmp_path / "card_window.csv", *records.KERNEL_RECORDS["window"])
    for implementation, forward, both in (("floor", 0.1, 0.3), ("ours", 0.2, 0.9), ("timm", 0.8, 1.8)):
        add_kernel(windows, "window", SWIN[0], implementation, forward, both, graph_p50_ms=0.6)
    models = records.Records(tmp_path / "card_models.csv", records.MODEL_COLUMNS, records.MODEL_KEY)
    for name, rate in (("gna_nano", 100), ("timm/resnet18", 50)):
        for step in ("training", "inference"):
            models.add(model=name, batch=2, size=224, dtype="bfloat16", compiled="no", channels_last=True,
                       images_per_s=rate, p50_ms=1.0, peak_gib=0.5, parameters_m=4.4, **ORIGIN,
                       **{"pass": step})  # fmt: skip
    for kept in (kernels, windows, models):
        kept.write()
    return tmp_path


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# A page\n" + "\n".join(f"<!-- {name}: x -->\nold\n<!-- end of {name} -->" for name in NAMES))
    return path


@pytest.fixture
def few_models(monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ["gna_nano", "gna_tiny"])


@pytest.fixture
def no_patterns(monkeypatch):
    monkeypatch.setattr(report, "THEMES", {})


def test_one_command_draws_every_figure_fills_the_page_and_gives_the_same_files_again(
    results, page, few_models, monkeypatch, capsys
):
    assert main(["report", "--results", str(results), "--readme", str(page)]) == 0
    said = capsys.readouterr().out
    drawn = {path.name for path in (results / "figures").iterdir()}
    names = {f"card_{name}.png" for name in ("kernels", "window", "models", "speedups", "floor", "throughput")}
    assert drawn == names | {"patterns_light.png", "patterns_dark.png"}
    assert "not drawn: card_memory.png: no model was measured at two image sizes" in said
    assert all(Image.open(results / "figures" / name).width > 500 for name in drawn)
    text = page.read_text()
    assert "old" not in text and text.startswith("# A page\n")
    assert "| `gna_nano` | 4.4 | 0.6 | 32-64-128-256 | 100 | 100 |" in text
    assert "| `gna_tiny` | 27.9 | 4.3 | 64-128-256-512 | - | - |" in text
    assert "card_speedups.png" in text and "card_memory.png" not in text
    assert text.count("<details>") == text.count("</details>") == 2
    first = {path.name: path.read_bytes() for path in [page, *(results / "figures").glob("card_*")]}
    shutil.rmtree(results / "figures")
    monkeypatch.setattr(report, "THEMES", {})
    assert main(["report", "--results", str(results), "--readme", str(page)]) == 0
    assert first == {path.name: path.read_bytes() for path in [page, *(results / "figures").iterdir()]}
    assert not list(results.rglob("*.tmp"))


def test_losses_are_told_shape_by_shape(results):
    neighborhood, window = readme.headlines(results).splitlines()[2:]
    lost = f"{WIDE[0].name}: 0.25x / 0.25x"
    assert neighborhood == f"| neighborhood | NATTEN's best | 2 | 1.0x (least 0.25x) | 1.0x (least 0.25x) | {lost} |"
    assert window == "| window | timm's path | 1 | 4.0x (least 4.00x) | 2.0x (least 2.00x) | nowhere |"


def points(axis):
    return {line.get_label(): list(zip(*line.get_data())) for line in axis.lines if line.get_linestyle() == "None"}


@pytest.fixture
def drawn_axes(monkeypatch):
    """The axes of a picture, kept from being written."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, target: kept.append(figure))
    yield kept
    for figure in kept:
        figure.clear()


def test_points_lie_at_the_measured_ratios(results, tmp_path, drawn_axes):
    (machine,) = report.machines(results)
    assert list(machine.ops) == ["neighborhood", "window"] and machine.gpu == "a GPU, bfloat16, torch 9.9"
    figures.draw_speedups(machine, tmp_path / "a.png")
    figures.draw_floor(machine, tmp_path / "b.png")
    speedups, floor = ([points(axis) for axis in figure.axes] for figure in drawn_axes)
    assert speedups[0]["NATTEN's best, forward"] == [(4.0, 0), (0.25, 1)]
    assert speedups[1]["timm's path, forward + backward"] == [(2.0, 0)]
    assert floor[0]["forward"] == [(2.0, 0), (16.0, 1)]
    assert floor[1]["forward + backward,\nas a CUDA graph"] == [(pytest.approx(2.0), 0)]


def test_memory_is_drawn_once_a_model_was_measured_at_two_sizes(results, tmp_path, drawn_axes):
    kept = records.Records(results / "card_models.csv", records.MODEL_COLUMNS, records.MODEL_KEY)
    kept.add(model="gna_nano", batch=2, size=2048, dtype="bfloat16", compiled="no", channels_last=True,
             images_per_s=1, p50_ms=1.0, peak_gib=30, parameters_m=4.4, **ORIGIN, **{"pass": "training"})  # fmt: skip
    kept.write()
    (machine,) = report.machines(results)
    figures.draw_memory(machine, tmp_path / "a.png")
    (figure,) = drawn_axes
    (axis,) = figure.axes  # training alone: one model has two sizes there, in inference none
    (line,) = axis.lines
    assert list(zip(*line.get_data())) == [(224, 0.5), (2048, 30.0)] and line.get_label() == "gna_nano, batch 2"
    assert "gna_nano" in readme.models(results / "card_models.csv")


def test_a_figure_whose_results_are_gone_goes_too(results, page, few_models, capsys, no_patterns):
    stale = results / "figures" / "card_memory.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    assert main(["report", "--results", str(results), "--no-readme"]) == 0
    assert not stale.exists() and "old" in page.read_text()


@pytest.mark.parametrize("argv, expected", [
    (["--readme", "none.md"], "--readme none.md: no such file"),
    (["--results", "nowhere", "--no-readme"], "nowhere holds no results"),
    (["--no-readme", "--results"], "expected one argument"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(argv, expected, capsys):
    try:
        code = main(["report", *argv])
    except SystemExit as leaving:
        code = leaving.code
    error = capsys.readouterr().err
    assert code == 2 and expected in error and error.count("\n") == 1


def test_a_page_without_its_places_is_refused_before_anything_is_drawn(results, page, capsys):
    page.write_text(page.read_text().replace("<!-- end of headlines -->", ""))
    assert main(["report", "--results", str(results), "--readme", str(page)]) == 2
    assert "must hold the pair of comments for headlines once, found 0" in capsys.readouterr().err
    assert not (results / "figures").exists()


def test_the_projects_own_figures_are_all_drawn():
    (machine,) = report.machines(ROOT / "benchmarks")
    for name, needs in (("speedups", machine.ops), ("floor", machine.ops), ("throughput", machine.models)):
        assert needs and (ROOT / "benchmarks" / "figures" / f"{machine.stem}_{name}.png").exists()
