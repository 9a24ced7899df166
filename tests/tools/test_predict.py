"""``visionattn predict``, really run: JSON and pictures, what cannot be read, and what users get wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visionattn import cli
from visionattn.predict import drawing
from visionattn.predict.cli import main
from visionattn.training.shapes import CLASSES
from visionattn.training.trained import Choice, load, locate
from visionattn.training.transforms import ToInput, eval_transform


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Path]) -> Path:
    return made_run(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_shapes: Callable[[Path], Path]) -> Path:
    """A working directory with pictures in val/CLASS/."""
    monkeypatch.chdir(tmp_path)
    return drawn_shapes(tmp_path)


def predict(*argv: object) -> int:
    return main([*map(str, argv), "--device", "cpu", "--threads", "1"])


def record(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "predictions.json").read_text())


def test_a_folder_gives_json_pictures_and_a_sheet(here: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(run, "val", "--top", 3, "--batch", 7) == 0
    found = record("predictions")
    assert (found["kind"], found["model"]["weights"], len(found["images"])) == ("classification", "ema", 30)
    choice = Choice()
    trained = load(locate(str(run), choice), choice)
    right = 0
    for one in found["images"]:
        path = Path(one["file"])
        pixels = eval_transform(trained.data)(Image.open(path).convert("RGB"))
        with torch.no_grad():
            probabilities = trained.model(ToInput(trained.data, torch.device("cpu"))(pixels[None]))[0].softmax(0)
        order = probabilities.argsort(descending=True)[:3].tolist()
        assert [top["index"] for top in one["top"]] == order
        assert [top["class"] for top in one["top"]] == [CLASSES[i] for i in order]
        assert one["top"][0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert one["true_class"] == path.parent.name and one["correct"] == (one["top"][0]["class"] == path.parent.name)
        right += one["correct"]
        assert Image.open(here / "predictions" / one["picture"]).size[0] > 700
    assert found["accuracy"] == pytest.approx(right / 30, abs=1e-6)
    assert f"{right} of 30 pictures right" in capsys.readouterr().out
    sheet = np.asarray(Image.open("predictions/sheet.png")).reshape(-1, 3)
    assert (sheet == drawing.GREEN).all(1).any() == (right > 0) and (sheet == drawing.RED).all(1).any() == (right < 30)
    assert not list((here / "predictions").rglob(".*")), "no temporary files stay"


def test_one_picture_from_a_list_and_from_raw_weights(here: Path, run: Path) -> None:
    Path("l.txt").write_text("val/ring/06.png\n")
    Path("mine").mkdir()
    shutil.copy("val/ring/06.png", "mine/x.png")
    assert predict(run, "l.txt", "--weights", "raw", "--out", "a") == 0
    assert predict(run, "mine/x.png", "--weights", "raw", "--out", "b") == 0
    a, b = record("a"), record("b")
    assert a["images"][0]["top"] == b["images"][0]["top"] and a["model"]["weights"] == "raw"
    assert "true_class" in a["images"][0] and "true_class" not in b["images"][0], "mine is no class"
    assert not Path("a/sheet.png").exists() and Path("b/x.png.png").exists()


def test_more_pictures_than_a_sheet_holds_make_more_sheets(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionattn.predict.cli.A_SHEET", 12)
    assert predict(run, "val", "--no-pictures", "--out", "p") == 0
    assert sorted(path.name for path in Path("p").iterdir()) == [
        "predictions.json", "sheet-2.png", "sheet-3.png", "sheet.png"]  # fmt: skip


def test_pictures_that_cannot_be_read_are_named_and_counted(
    here: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("val/ring/06.png").write_bytes(b"no picture")
    assert predict(run, "val", "--no-pictures") == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and "val/ring/06.png" in err[0] and "1 of 30 pictures skipped" in err[1]
    found = record("predictions")
    assert found["unreadable"] == ["val/ring/06.png"] and len(found["images"]) == 29


def test_predictions_that_are_there_are_not_lost(here: Path, run: Path) -> None:
    argv = [run, "val/ring/06.png", "--no-pictures"]
    assert predict(*argv) == predict(*argv) == 0
    assert Path("predictions/predictions.json").exists() and Path("predictions-2/predictions.json").exists()
    before = Path("predictions/predictions.json").read_text()
    assert predict(run, "val/star/04.png", "--out", "predictions") == 2
    assert Path("predictions/predictions.json").read_text() == before
    assert predict(run, "val/star/04.png", "--out", "predictions", "--overwrite") == 0
    assert Path("predictions/predictions.json").read_text() != before


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


CASES = {
    "no pictures": (["RUN"], "the following arguments are required: IMAGE"),
    "missing file": (["RUN", "x.png"], "x.png does not exist; name an image, a folder or a list"),
    "not an image": (["RUN", "words.png"], "none of the 1 pictures can be read: cannot read image words.png"),
    "folder without images": (["RUN", "empty"], "empty holds no images"),
    "list with a missing file": (["RUN", "l.txt"], "list l.txt, line 2: y.png does not exist"),
    "unknown model": (["gna_nana", "val"], "'gna_nana' is no path, and no model that timm knows"),
    "no published weights": (["gna_nano", "val"], "gna_nano has no published weights"),
    "file without its model": (["resnet.pth", "val"], "--model must say which model they are of"),
    "checkpoint of another model": (["resnet.pth", "val", "--model", "gna_nano"], "does not fit --model gna_nano"),
    "truncated checkpoint": (["short", "val"], "ema.safetensors cannot be read"),
    "pickle that runs code": (["code.pth", "val", "--model", "gna_nano"], "checkpoint code.pth cannot be read"),
    "wrong classes": (["few", "val"], "does not fit model gna_nano"),
    "size of zero": (["RUN", "val", "--size", "0"], "argument --size: must be a positive whole number, got '0'"),
    "word for a size": (["RUN", "val", "--size", "big"], "argument --size: must be a positive whole number"),
    "threshold above one": (["RUN", "val", "--threshold", "2"], "argument --threshold: must lie between 0 and 1"),
    "arguments that are no object": (["RUN", "val", "--kwargs", "[1]"], "argument --kwargs: must be a JSON object"),
    "arguments for a run": (["RUN", "val", "--kwargs", '{"a": 1}'], "says its model's arguments itself"),
    "unknown option": (["RUN", "val", "--tops", "3"], "unrecognized arguments: --tops 3"),
    "folder that is a file": (["RUN", "val", "--out", "l.txt"], "--out: l.txt is a file"),
    "half precision on a CPU": (["RUN", "val", "--precision", "fp16"], "--precision is fp16, which needs a GPU"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    (folder / "val").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "val" / "a.png")
    (folder / "empty").mkdir()
    (folder / "words.png").write_text("words")
    (folder / "l.txt").write_text("val/a.png\ny.png\n")
    (folder / "code.pth").write_bytes(pickle.dumps(Code()))
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), folder / "resnet.pth")
    last = (run / "checkpoints" / "last").resolve()
    short = shutil.copytree(last, folder / "short") / "ema.safetensors"
    short.write_bytes(short.read_bytes()[:60])
    few = shutil.copytree(last, folder / "few") / "state.json"
    few.write_text(json.dumps(json.loads(few.read_text()) | dict(classes=["a", "b"])))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(place)
    argv, message = CASES[case]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    argv = [str(run) if argument == "RUN" else argument for argument in argv]
    try:
        code = main([*argv, "--device", "cpu"])
    except SystemExit as leaving:  # argparse's own
        code = leaving.code
    assert code == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("visionattn predict: error: ") and message in err[0], err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["predict", "--help"])
    assert not leaving.value.code
    out = capsys.readouterr().out
    options = ["out", "top", "size", "crop-pct", "weights", "model", "kwargs", "batch", "device", "precision"]
    assert all(f"--{option} " in out for option in options) and out.count("default:") >= len(options)
    assert "Exit code: 0" in out
