"""``visionattn train-det``, really run: what it writes, that it stops, continues, and says what is wrong."""

import csv
import multiprocessing
import os
import runpy
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pycocotools")

from PIL import Image

from visionattn import cli
from visionattn.detection.train import main
from visionattn.training import checkpoint, logs
from visionattn.training.loop import Trainer

RECIPE = ["--model.drop_path", "0.1", "--optim.accumulation", "2", "--augment.short_sides", "[48, 64]"]

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["visionattn.detection.task"])


@pytest.fixture(scope="session")
def train(tiny_argv: list[str]) -> Callable[..., int]:
    """``train(*argv)``: the exit code of a tiny run."""
    return lambda *argv: main([*tiny_argv, *map(str, argv)])


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Drawing curves takes longer than these runs do, and other tests look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, train: Callable) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(*RECIPE, "--run.dir", folder) == 0
    return folder


def same_end(a: Path, b: Path, equal_bits: Callable) -> None:
    """Both runs ended with the same weights, averages, optimiser state and measurements."""
    one, two = (checkpoint.load(checkpoint.find(path)) for path in (a, b))
    assert one.state["step"] == two.state["step"] and one.state["best"] == two.state["best"]
    assert equal_bits(one.model, two.model) and equal_bits(one.ema, two.ema)
    assert one.optimizer["state"] and equal_bits(one.optimizer, two.optimizer)
    for name, columns in (("steps.csv", ("step", "loss", "lr")), ("epochs.csv", ("step", "box_ap", "box_ap50"))):
        assert len({
            tuple(tuple(row[column] for column in columns) for row in logs.read_table(path / name)) for path in (a, b)
        }) == 1, name  # fmt: skip


def test_a_run_leaves_what_a_classifiers_leaves_and_a_picture_of_predictions(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "command.txt", "steps.csv", "epochs.csv", "tensorboard", "curves.png",
        "checkpoints", "predictions.png",
    }  # fmt: skip
    with (whole / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["8"] and 0 <= float(rows[0]["box_ap"]) <= float(rows[0]["box_ap50"]) <= 1
    sheet = Image.open(whole / "predictions.png")
    assert sheet.width > 1000 and sheet.height > 900 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_killed_while_saving_and_resumed_ends_with_the_same_bits(
    whole: Path, tmp_path: Path, equal_bits: Callable, tiny_argv: list[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*tiny_argv, *RECIPE, "--run.dir", str(run), "--run.checkpoint_steps", "1", "--resume", "auto"]
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from visionattn.detection.train import main\nfrom visionattn.training import logs\n"
        f"file = open({str(log)!r}, 'a')\nos.dup2(file.fileno(), 1)\nos.dup2(file.fileno(), 2)\n"
        f"logs.draw_curves = lambda folder: None\nsys.exit(main({argv!r}))\n"
    )
    codes = []
    for kill in (True, False):
        process = processes.Process(target=runpy.run_path, args=(str(script), None, "__main__"))
        process.start()
        while kill and process.is_alive():
            folders = list((run / "checkpoints").glob("step-*")) if (run / "checkpoints").exists() else []
            if folders and folders[0].name >= "step-00000003" and list((run / "checkpoints").glob(".step-*.tmp")):
                process.kill()
            time.sleep(0.001)
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL, 0], log.read_text()
    assert "from step " in log.read_text()
    same_end(whole, run, equal_bits)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_mask_rcnn_stopped_by_a_signal_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal_bits: Callable, no_curves: None, train: Callable,
    few_regions: list[str], workers: int,
) -> None:  # fmt: skip
    recipe = ["--model.detector", "maskrcnn", *few_regions, "--data.workers", workers]
    recipe += ["--augment.resize", "jitter", "--augment.crop", 64, "--schedule.epochs", 1, "--data.shapes_train", 12]
    recipe += ["--schedule.warmup_epochs", 0.5, "--run.drawings", 0]
    assert train(*recipe, "--run.dir", tmp_path / "whole") == 0
    real = Trainer._one_step

    def step(self: Trainer, batches: object) -> object:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", step)
        assert train(*recipe, "--run.dir", tmp_path / "cut") == 143
    assert checkpoint.load(checkpoint.find(tmp_path / "cut")).state["step"] == 2
    assert train(*recipe, "--run.dir", tmp_path / "cut", "--resume", "auto") == 0
    same_end(tmp_path / "whole", tmp_path / "cut", equal_bits)


def test_damaged_images_and_annotations_are_counted_and_training_goes_on(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture, no_curves: None, train: Callable
) -> None:
    root = coco
    (root / "train2017" / "0002.png").write_bytes(b"no picture")
    (root / "val2017" / "0001.png").unlink()
    argv = ["--data.dataset", "coco", "--data.root", root, "--schedule.epochs", 1, "--schedule.warmup_epochs", 0]
    assert train(*argv, "--run.dir", tmp_path / "a") == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("visionattn train-det: error: data.root: 1 of 5 images") and "data.unreadable skip" in err
    assert train(*argv, "--run.dir", tmp_path / "b", "--data.unreadable", "skip") == 0
    out = capsys.readouterr().out
    assert "note: val: 1 of 5 images" in out and "0002.png, which cannot be read" in out
    assert (tmp_path / "b" / "unreadable.txt").read_text().endswith("0002.png\n")


MISTAKES = {
    "mistyped option": (["--optim.lrr", "1"], "unknown option --optim.lrr; did you mean optim.lr?"),
    "option of the other tool": (["--optim.label_smoothing", "0.1"], "unknown option --optim.label_smoothing"),
    "no root": (["--data.dataset", "coco"], "data.root is not set; data.dataset 'coco' needs to know"),
    "no such root": (["--data.dataset", "coco", "--data.root", "x"], "data.root: x is not a directory"),
    "channels that do not divide": (["--model.fpn_channels", "50"], "model.fpn_channels is 50; it must be 64, 96"),
    "long side below the short": (["--data.long_side", "48"], "data.long_side is 48; it must be at least 64"),
    "sides above the long one": (["--augment.short_sides", "[64, 128]"], "augment.short_sides is [64, 128]"),
    "falls that do not rise": (["--schedule.milestones", "[1, 1]"], "schedule.milestones is [1, 1]; it must be rising"),
    "batch larger than the data": (["--optim.batch_size", "64"], "batch_size is 64, but there are only 16 training"),
    "a graph of the step": (["--optim.cuda_graph", "true"], "optim.cuda_graph is true; a detector's losses"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, train: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, message = MISTAKES[case]
    assert train(*argv) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("visionattn train-det: error: ") and message in err and "\n" not in err
    assert not list(tmp_path.iterdir())


def test_another_detectors_checkpoint_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, train: Callable
) -> None:
    assert train(*RECIPE, "--model.detector", "retinanet", "--resume", whole, "--run.dir", tmp_path / "r") == 2
    assert "was trained with detector = fcos, but now it is retinanet" in capsys.readouterr().err


def test_the_console_script_knows_it_and_the_configs_are_read(capsys: pytest.CaptureFixture) -> None:
    root = Path(__file__).resolve().parents[2]
    configs = sorted((root / "configs" / "detection").glob("*.yaml"))
    assert len(configs) >= 5
    for path in configs:
        with pytest.raises(SystemExit) as leaving:
            cli.main(["train-det", "--config", str(path), "--print_config"])
        assert not leaving.value.code
    assert "detector: maskrcnn" in capsys.readouterr().out


def test_the_embedded_default_is_spelt_out_in_its_config() -> None:
    from visionattn.detection.config import DetConfig
    from visionattn.training.options import parse

    path = Path(__file__).resolve().parents[2] / "configs" / "detection" / "fcos_gna_nano_shapes.yaml"
    assert parse(DetConfig, ["--config", str(path)], "test", "") == parse(DetConfig, [], "test", "")
