"""``visionattn validate``, really run: what training said, several models, what it writes, and what users get wrong."""

import csv
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from visionattn import cli
from visionattn.training.shapes import CLASSES
from visionattn.training.train import main as train
from visionattn.validate.cli import main

MODEL = '{"stem_stride": 4, "dims": [16], "depths": [1], "num_heads": [1]}'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Path]) -> Path:
    return made_run(tmp_path_factory.mktemp("validate") / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(*argv: object) -> int:
    return main([*map(str, argv), "--device", "cpu", "--threads", "1"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_finds_what_training_found(here: Path) -> None:
    options = ["--run.dir", "run", "--model.kwargs", MODEL, "--data.image_size", "32", "--data.shapes_train", "64"]
    options += ["--data.shapes_val", "50", "--optim.batch_size", "16", "--schedule.epochs", "3", "--run.device", "cpu"]
    assert train([*options, "--run.threads", "1", "--data.eval_batch_size", "20"]) == 0
    log = rows(here / "run" / "epochs.csv")[-1]
    assert validate("run", "--csv", "r.csv") == 0
    (row,) = rows(here / "r.csv")
    assert float(row["top1"]) == pytest.approx(float(log["top1"]), abs=1e-5)
    assert float(row["top5"]) == pytest.approx(float(log["top5"]), abs=1e-5)
    assert float(row["loss"]) == pytest.approx(float(log["val_loss"]), abs=1e-5)
    assert (row["images"], row["weights"], row["dataset"]) == ("50", "ema", "shapes")


def test_several_models_share_a_table_a_file_and_a_picture(
    here: Path, run: Path, drawn_shapes: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_shapes(here / "data")
    torch.manual_seed(0)
    kwargs = json.loads(MODEL)
    torch.save(timm.create_model("gna_nano", num_classes=10, **kwargs).state_dict(), "official.pth")
    data = ["--data.dataset", "folder", "--data.root", "data", "--data.eval_batch_size", 7]
    assert validate(run, run / "checkpoints/last/model.safetensors", *data, "--csv", "r.csv") == 0
    more = ["--model", "gna_nano", "--kwargs", MODEL, "--data.image_size", 32, "--reliability", "r.png"]
    assert validate("official.pth", *data, *more, "--csv", "r.csv") == 0
    found = rows(here / "r.csv")
    assert [row["weights"] for row in found] == ["ema", "raw", "file"]
    assert {row["images"] for row in found} == {"30"} and {row["image_size"] for row in found} == {"32"}
    assert found[2]["interpolation"] == "bicubic" and found[2]["crop_pct"] == "0.9", "the model's own, not the run's"
    assert (here / "r.png").stat().st_size > 10_000
    assert len(set(here.iterdir())) == 4, "no temporary files stay"
    out = capsys.readouterr().out
    assert "top-1 %" in out and "ECE %" in out


def test_one_bad_model_among_several_does_not_cost_the_others(
    here: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = shutil.copytree((run / "checkpoints" / "last").resolve(), here / "bad")
    (bad / "ema.safetensors").write_bytes(b"short")
    assert validate(bad, run, "--csv", "r.csv") == 2
    assert [row["source"] for row in rows(here / "r.csv")] == [str(run)]
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "ema.safetensors cannot be read" in err[0]


def test_bf16_channels_last_and_raw_weights_are_taken_when_asked(here: Path, run: Path) -> None:
    argv = ["--precision", "bf16", "--channels_last", "true", "--weights", "raw", "--csv", "r.csv"]
    assert validate(run, *argv) == 0
    (row,) = rows(here / "r.csv")
    assert (row["precision"], row["channels_last"], row["weights"]) == ("bf16", "True", "raw")


@pytest.mark.slow
def test_a_compiled_model_finds_the_same(here: Path, run: Path) -> None:
    torch._dynamo.reset()
    assert validate(run, "--csv", "r.csv") == 0
    assert validate(run, "--csv", "r.csv", "--compile", "true") == 0
    eager, compiled = rows(here / "r.csv")
    assert eager["top1"] == compiled["top1"]
    assert float(eager["loss"]) == pytest.approx(float(compiled["loss"]), rel=1e-4)


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def files(here: Path, run: Path) -> None:
    """What the cases below name."""
    (here / "notes").mkdir()
    (here / "notes" / "a.txt").write_text("")
    (here / "code.pth").write_bytes(pickle.dumps(Code()))
    torch.save(dict(state_dict=Code()), here / "state.pth")
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), here / "resnet.pth")
    kwargs = json.loads(MODEL)
    save_file(timm.create_model("gna_nano", num_classes=3, **kwargs).state_dict(), here / "three.safetensors")
    for name, change in (("short", "ema.safetensors"), ("odd", "state.json")):
        copy = shutil.copytree((run / "checkpoints" / "last").resolve(), here / name)
        (copy / change).write_bytes((copy / change).read_bytes()[:60])
    few = shutil.copytree((run / "checkpoints" / "last").resolve(), here / "few") / "state.json"
    few.write_text(json.dumps(json.loads(few.read_text()) | dict(classes=list(CLASSES[:4]))))
    (here / "taken.csv").write_text("mine")
    (here / "labels.json").write_text('{"a.png": 3}')


CASES = {
    "no model": ([], "name at least one model"),
    "missing path": (["runs/none"], "runs/none does not exist"),
    "unknown name": (["gna_nana"], "'gna_nana' is no path, and no model that timm knows; for example: gna_"),
    "no published weights": (["gna_tiny"], "gna_tiny has no published weights"),
    "folder of something else": (["notes"], "notes is no run, no checkpoint and no exported model"),
    "file without its model": (["resnet.pth"], "resnet.pth is a file of weights; --model must say which model"),
    "file of another model": (["resnet.pth", "--model", "gna_nano"], "resnet.pth does not fit --model gna_nano"),
    "unknown model for a file": (["resnet.pth", "--model", "resnet9"], "model 'resnet9' is unknown to timm"),
    "another model for a run": (["RUN", "--model", "gna_tiny"], "trained with model gna_nano, but --model is gna_tiny"),
    "averaged weights of a file": (["resnet.pth", "--model", "resnet10t", "--weights", "ema"], "chooses between"),
    "truncated weights": (["short"], "ema.safetensors cannot be read"),
    "truncated state": (["odd"], "state.json cannot be read"),
    "pickle that runs code": (["code.pth", "--model", "gna_nano"], "checkpoint code.pth cannot be read"),
    "checkpoint that runs code": (["state.pth", "--model", "gna_nano"], "checkpoint state.pth cannot be read"),
    "classes that do not fit the weights": (["few"], "does not fit model gna_nano"),
    "classes of other data": (
        ["three.safetensors", "--model", "gna_nano", "--kwargs", MODEL, "--data.dataset", "shapes", "--data.shapes_val",
         "10", "--data.image_size", "32"], "knows 3 classes (0, 1, 2), but the data has 10"),
    "no data": (["three.safetensors", "--model", "gna_nano", "--kwargs", MODEL], "data.root is not set"),
    "data that is not there": (["RUN", "--data.dataset", "folder", "--data.root", "x"], "x/val is not a directory"),
    "bad size": (["RUN", "--data.image_size", "0"], "data.image_size is 0; it must be above 0"),
    "word for a size": (["RUN", "--data.image_size", "big"], "data.image_size"),
    "mistyped option": (["RUN", "--data.rot", "x"], "unknown option --data.rot"),
    "model behind the options": (["RUN", "--bins", "5", "runs/b"], "runs/b"),
    "table of something else": (["RUN", "--csv", "taken.csv"], "csv: taken.csv is there, but no table of this command"),
    "picture that is there": (["RUN", "--reliability", "taken.csv"], "taken.csv is there already; --overwrite"),
    "labels that are not there": (["RUN", "--real_labels", "no.json"], "real_labels: no.json cannot be read"),
    "labels of another form": (["RUN", "--real_labels", "labels.json"], "must hold a list of lists of classes"),
    "half precision on a CPU": (["RUN", "--precision", "fp16"], "--precision is fp16, which needs a GPU"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    files(folder, run)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(place)
    argv, message = CASES[case]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    argv = [str(run) if argument == "RUN" else argument for argument in argv]
    assert main([*argv, "--device", "cpu"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("visionattn validate: error: ") and message in err[0], err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@pytest.mark.parametrize("package, dataset", [("webdataset", "wds"), ("datasets", "hfds")])
def test_a_package_that_is_not_installed_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, dataset: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert validate(run, "--data.dataset", dataset, "--data.root", "x") == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and f"pip install {package}" in err[0]


def test_help_names_every_option_and_the_console_script_has_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["validate", "--help"])
    assert not leaving.value.code
    out = capsys.readouterr().out
    assert "MODEL [MODEL ...]" in out
    for option in ("data.root", "data.crop_pct", "real_labels", "weights", "csv", "compile", "channels_last"):
        assert f"--{option}" in out
    assert out.count("default:") >= 25
