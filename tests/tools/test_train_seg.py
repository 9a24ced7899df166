"""``visionattn train-seg``, really run: what it writes, resumes, evaluates, begins with, and what users get wrong."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.segmentation.train import main
from visionattn.training.shapes import draw_scene

pytest.importorskip("mmseg", reason="needs the extra seg")
ROOT = Path(__file__).resolve().parents[2]
NARROW = "{'stem_stride': 4, 'dims': (16, 16, 32, 32), 'depths': (1, 1, 1, 1), 'num_heads': (1, 1, 2, 2)}"
TINY = [
    "--set", f"model.backbone.kwargs={NARROW}", "model.decode_head.in_channels=[16, 16, 32, 32]",
    "model.decode_head.channels=8", "model.auxiliary_head.in_channels=32", "model.auxiliary_head.channels=8",
    "train_dataloader.batch_size=4", "default_hooks.checkpoint.interval=3", "default_hooks.logger.interval=1",
    "train_cfg.val_interval=3",
]  # fmt: skip
SHAPES = ["train_dataloader.dataset.length=20", "val_dataloader.dataset.length=6", "train_dataloader.dataset.size=32",
          "model.data_preprocessor.size=(32, 32)", "val_dataloader.dataset.size=(37, 53)"]  # fmt: skip


def train(*argv: object, settings: tuple[str, ...] = ()) -> int:
    return main([*TINY, *SHAPES, *settings, "--device", "cpu", "--threads", "1", "--iterations", "6", *map(str, argv)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run of six iterations on pictures of odd sizes, and what it printed last."""
    folder, said = tmp_path_factory.mktemp("seg") / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert train("--run-dir", folder, "--pictures", 3, "--results", folder.parent / "a_camvid.csv") == 0
    return folder, said.getvalue()


def classes(folder: Path) -> dict[str, float]:
    with (folder / "classes.csv").open() as file:
        return {row["class"]: float(row["iou"]) for row in csv.DictReader(file)}


def test_a_run_leaves_checkpoints_logs_figures_and_pictures(trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert {path.name for path in folder.glob("*.pth")} >= {"iter_3.pth", "iter_6.pth"}
    assert len(list(folder.glob("best_mIoU_iter_*.pth"))) == 1 and not list(folder.glob(".*"))
    found = classes(folder)
    assert len(found) == 11 and found["background"] >= 0
    mean = np.nanmean(list(found.values()))
    assert float(re.search(r"done in \d+ s: mIoU ([\d.]+) %", said)[1]) == pytest.approx(mean, abs=0.02)
    with Image.open(folder / "predictions.png") as sheet:
        assert sheet.height > 3 * 240
    rows = [json.loads(line) for line in next(folder.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert all("time" in row and np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert list(folder.glob("*/vis_data/events.out.tfevents.*"))


def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    trained: tuple[Path, str], tmp_path: Path, equal_bits: Callable
) -> None:
    half = tmp_path / "run"
    half.mkdir()
    shutil.copy(trained[0] / "iter_3.pth", half)
    assert train("--run-dir", half, "--resume", "auto", "--pictures", 0) == 0
    one, two = (torch.load(path / "iter_6.pth", weights_only=False) for path in (trained[0], half))
    assert one["meta"]["iter"] == two["meta"]["iter"] == 6
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert equal_bits(one[part], two[part]), part
    assert classes(half) == pytest.approx(classes(trained[0]), nan_ok=True)


def test_a_line_of_results_says_what_was_run_and_what_came_out(trained: tuple[Path, str]) -> None:
    from visionattn.benchmark.readme import camvid

    path = trained[0].parent / "a_camvid.csv"
    with path.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["config"], row["seed"], row["iterations"]) == ("upernet_gna_nano_shapes", "0", "6")
    assert (row["compiled"], row["precision"], row["memory_mib"]) == ("no", "fp32", "")
    assert float(row["miou"]) == pytest.approx(np.nanmean(list(classes(trained[0]).values())), abs=0.02)
    assert 0 < float(row["data_ms"]) < float(row["ms_per_iteration"]) < 1e3 * float(row["wall_s"])
    assert "| `upernet_gna_nano_shapes` | no | 1 |" in camvid(path)


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_when_it_is_done(tmp_path: Path, ends_when_done: Callable) -> None:
    loaders = [f"{name}_dataloader.{option}" for name in ("train", "val") for option in
               ("num_workers=6", "persistent_workers=True", "pin_memory=True")]  # fmt: skip
    argv = [*TINY, *SHAPES, *loaders, "--iterations", "6", "--run-dir", "run", "--pictures", "0"]
    process = subprocess.Popen([sys.executable, "-u", ROOT / "tools" / "train_seg.py", *argv], text=True, cwd=tmp_path,
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)  # fmt: skip
    ends_when_done(process)


def test_evaluation_repeats_the_figures_of_training_and_slides_too(trained: tuple[Path, str], tmp_path: Path) -> None:
    assert train("--eval", trained[0], "--run-dir", tmp_path / "whole") == 0
    assert classes(tmp_path / "whole") == pytest.approx(classes(trained[0]), nan_ok=True)
    assert (tmp_path / "whole" / "predictions.png").exists() and not list((tmp_path / "whole").glob("*.pth"))
    slide = ("model.test_cfg={'mode': 'slide', 'crop_size': (32, 32), 'stride': (20, 20)}",)
    argv = ("--eval", trained[0] / "iter_6.pth", "--run-dir", tmp_path / "slide", "--pictures", 0)
    assert train(*argv, settings=slide) == 0
    assert classes(tmp_path / "slide") != classes(tmp_path / "whole")


@pytest.mark.slow
def test_a_backbone_that_was_trained_as_a_classifier_is_taken_by_one_option(tmp_path: Path) -> None:
    from visionattn.training import train as classifier

    argv = ["--model.kwargs", NARROW.replace("'", '"').replace("(", "[").replace(")", "]"), "--data.image_size", "32"]
    argv += ["--data.shapes_train", "32", "--data.shapes_val", "20", "--optim.batch_size", "16", "--run.device", "cpu"]
    assert classifier.main([*argv, "--schedule.epochs", "1", "--run.dir", str(tmp_path / "classifier")]) == 0
    assert train("--checkpoint", tmp_path / "classifier", "--run-dir", tmp_path / "seg", "--pictures", 0) == 0
    log = next((tmp_path / "seg").glob("*/*.log")).read_text()
    said = (
        f"backbone gna_nano: weights of {tmp_path / 'classifier'} (10 classes); missing keys: none; unexpected keys: 4 "
    )
    assert said + "(norm.weight, norm.bias, head.fc.weight, head.fc.bias)" in log


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``refused(message, *argv, settings=())``: the run ends with code 2 and one line that says `message`."""
    monkeypatch.chdir(tmp_path)

    def check(message: str, *argv: object, settings: tuple[str, ...] = ()) -> None:
        capsys.readouterr()
        try:
            code = train(*argv, settings=settings)
        except SystemExit as leaving:  # argparse's own way
            code = leaving.code
        err = [line for line in capsys.readouterr().err.splitlines() if "Warning" not in line and line[:1] != " "]
        assert code == 2 and len(err) == 1 and err[0].startswith("visionattn train-seg: error: "), err
        assert message in err[0], err[0]

    return check


def test_other_classes_begin_with_new_heads_and_say_so(
    trained: tuple[Path, str], refused: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, config = scene_folder(tmp_path)
    checkpoint = trained[0] / "iter_6.pth"
    argv = [str(config), "--device", "cpu", "--run-dir", str(tmp_path / "run"), "--pictures", "0"]
    assert main([*argv, "--load", str(checkpoint)]) == 0
    log = next((tmp_path / "run").glob("*/*.log")).read_text()
    assert "is of 11 classes (background, circle, square, triangle, ...), the data set has 3 (a, b, c): the hea" in log
    assert "decode_head.conv_seg.weight" in log and "no key missing or unexpected" in log
    refused("is of 3 classes (a, b, c), but the data set has 11", "--eval", tmp_path / "run")
    # a class that is no class in a mask, found while training
    mask = np.asarray(Image.open(root / "masks/train/2.png")).copy()
    mask[4, 7] = 9
    Image.fromarray(mask).save(root / "masks/train/2.png")
    capsys.readouterr()
    assert main([str(config), "--device", "cpu", "--set", "train_dataloader.num_workers=1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("visionattn train-seg: error: mask ") and "Traceback" not in said
    assert "masks/train/2.png has the value 9 at row 4, column 7, which is no class" in said


def scene_folder(folder: Path) -> tuple[Path, Path]:
    """(pictures and masks of three classes, a config that trains on them)."""
    root = folder / "data"
    for split, count in (("train", 6), ("val", 3)):
        for i in range(count):
            scene = draw_scene(i, split, size=32, objects=2, object_scale=(0.2, 0.34))
            mask = np.zeros((32, 32), np.uint8)
            for label, visible in zip(scene.labels, scene.masks):
                mask[visible] = 1 + label % 2
            for kind, array in (("images", scene.image), ("masks", mask)):
                path = root / kind / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    config = folder / "three.py"
    dataset = f"dict(_delete_=True, type='SceneFolder', data_root='{root}', classes=['a', 'b', 'c'], "
    dataset += "images='images/{0}', masks='masks/{0}', test_mode={1}, pipeline=[dict(type='PackSegInputs')])"
    config.write_text(f"""
_base_ = ["{ROOT / "configs" / "segmentation" / "upernet_gna_nano_shapes.py"}"]
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(kwargs=dict({NARROW})),
    decode_head=dict(in_channels=[16, 16, 32, 32], channels=8, num_classes=3),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=3))
train_dataloader = dict(batch_size=3, dataset={dataset.format("train", False)})
val_dataloader = dict(batch_size=3, dataset={dataset.format("val", True)})
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = []
""")
    return root, config


MISTAKES = {
    "missing config": (["no.py"], (), "config no.py: no such file"),
    "unknown backbone": ([], ("model.backbone.name=gna_nanoo",), "backbone name is 'gna_nanoo', which timm does not"),
    "mistyped section": ([], ("model.backbon.name=x",), "model has no 'backbon'; did you mean backbone?"),
    "mistyped setting": ([], ("model.backbone.nam=x",), "model.backbone has no 'nam'; did you mean name?"),
    "mistyped argument": ([], ("train_cfg.val_intervall=2",), "train_cfg has no 'val_intervall'; did you mean val_int"),
    "setting without value": ([], ("model.precision",), "setting 'model.precision': settings are written as"),
    "word for a number": ([], ("train_dataloader.batch_size=many",), "batch_size: must be of the kind"),
    "value for a section": ([], ("model.backbone=gna_tiny",), "model.backbone: must be of the kind of the config's"),
    "no such entry": ([], ("param_scheduler.7.begin=1",), "param_scheduler has entries 0 to 1, not '7'"),
    "unknown precision": ([], ("model.precision=fp8",), "model.precision is 'fp8'; it must be one of fp32, bf16"),
    "heads of other classes": ([], ("model.decode_head.num_classes=7",), "decode_head.num_classes is 7, but Shapes"),
    "heads of other maps": ([], ("model.decode_head.in_channels=[3, 16, 32, 32]",), "in_channels is [3, 16, 32, 32]"),
    "data without a folder": (["--data-root", "x"], (), "ShapesScenes is generated and has none"),
    "no GPU": (["--device", "cuda"], (), "--device is cuda, but PyTorch finds no usable GPU"),
    "weights that are not there": (["--checkpoint", "w.pth"], (), "checkpoint w.pth does not exist"),
    "segmentor that is not there": (["--load", "s.pth"], (), "checkpoint s.pth does not exist"),
    "nothing to evaluate": (["--eval", "."], (), ". holds no checkpoint (iter_N.pth)"),
    "nothing to resume": (["--resume", "x.pth"], (), "checkpoint x.pth does not exist"),
    "results of no training": (["--eval", "x", "--results", "r.csv"], (), "--results is of training runs"),
    "two beginnings": (["--resume", "auto", "--load", "x"], (), "give one of --resume, --load and --eval"),
    "batch larger than the data": ([], ("train_dataloader.batch_size=64",), "is 64, but the training set has"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    case: str, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv, settings, message = MISTAKES[case]
    refused(message, *argv, settings=settings)


def test_a_config_that_fails_is_one_line(tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "c.py").write_text("model = undefined\n")
    refused("config c.py cannot be read: name 'undefined' is not defined", "c.py")
    (tmp_path / "c.py").write_text("model = dict(type='Segmentor')\n")
    refused("config c.py has no train_dataloader", "c.py")


def test_a_run_folder_that_is_taken_and_a_damaged_checkpoint_are_told(
    trained: tuple[Path, str], refused: Callable[..., None], tmp_path: Path
) -> None:
    refused("already holds a run; continue it with --resume auto", "--run-dir", trained[0])
    damaged = tmp_path / "iter_3.pth"
    damaged.write_bytes((trained[0] / "iter_3.pth").read_bytes()[:5000])
    refused("iter_3.pth cannot be read", "--resume", damaged)
    refused("is not of this model: keys", "--eval", trained[0], settings=("model.auxiliary_head=None",))
