"""``visionattn train``, really run: what it writes, that it learns, stops, continues, and says what is wrong."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visionattn import cli
from visionattn.training.shapes import Shapes
from visionattn.training.train import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = dict(stem_stride=4, dims=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
TINY = [
    "--model.kwargs", json.dumps(MODEL), "--data.image_size", "32", "--data.shapes_train", "64",
    "--data.shapes_val", "20", "--optim.batch_size", "16", "--schedule.epochs", "2", "--run.device", "cpu",
    "--run.log_steps", "1", "--run.threads", "1",
]  # fmt: skip


def train(*argv: object) -> int:
    return main([*TINY, *map(str, argv)])


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learns: few pictures, seen often, without augmentation."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = ["--run.dir", folder, "--data.shapes_train", 40, "--optim.batch_size", 10, "--schedule.epochs", 10]
    argv += ["--augment.crop", "none", "--augment.hflip", 0, "--optim.lr", 0.01, "--run.eval_every", 5]
    assert train(*argv, "--schedule.warmup_epochs", 1, "--optim.label_smoothing", 0) == 0
    return folder


def test_it_learns(trained: Path) -> None:
    loss = [float(row["loss"]) for row in table(trained / "steps.csv")]
    assert len(loss) == 40
    assert sum(loss[-5:]) < 0.5 * sum(loss[:5])


def test_a_run_leaves_what_it_takes_to_read_it_and_to_run_it_again(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "command.txt", "steps.csv", "epochs.csv", "tensorboard", "curves.png",
        "checkpoints",
    }  # fmt: skip
    assert [row["step"] for row in table(trained / "epochs.csv")] == ["20", "40"]
    columns = ["step", "epoch", "train_loss", "val_loss", "top1", "top5", "seconds"]
    assert list(table(trained / "epochs.csv")[0]) == columns
    assert json.loads((trained / "environment.json").read_text())["versions"]["timm"]
    assert (trained / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(EventAccumulator(str(trained / "tensorboard")).Reload().Scalars("train/loss")) == 40
    for link in ("last", "best"):
        found = {path.name for path in (trained / "checkpoints" / link).iterdir()}
        assert found == {"model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"}


def test_the_written_config_runs_the_same_again(trained: Path, tmp_path: Path) -> None:
    again = ["--config", trained / "config.yaml", "--run.dir", tmp_path / "run"]
    assert main([str(x) for x in again]) == 0
    for column in ("loss", "lr"):
        rows = [[row[column] for row in table(folder / "steps.csv")] for folder in (trained, tmp_path / "run")]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["model", "ema"])
def test_trained_weights_load_with_timm(trained: Path, name: str) -> None:
    file = trained / "checkpoints" / "last" / f"{name}.safetensors"
    model = timm.create_model(
        "gna_nano",
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(file), num_classes=10),
        num_classes=10,
        **MODEL,
    ).eval()
    plain = timm.create_model("gna_nano", num_classes=10, **MODEL).eval()
    plain.load_state_dict(load_file(file))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
    assert json.loads((file.parent / "state.json").read_text())["kwargs"] == MODEL


def test_resume_auto_starts_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train("--run.dir", run, "--resume", "auto") == 0
    assert train("--run.dir", run, "--resume", "auto", "--schedule.epochs", 3) == 0
    assert "from step 8" in capsys.readouterr().out
    assert [row["step"] for row in table(run / "epochs.csv")] == ["4", "8", "12"]
    assert len((run / "command.txt").read_text().splitlines()) == 2
    assert train("--run.dir", run, "--resume", "auto", "--schedule.epochs", 3) == 0  # nothing left to do
    assert len(table(run / "steps.csv")) == 12


def test_runs_without_a_folder_get_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train("--schedule.epochs", 1, "--schedule.warmup_epochs", 0) == 0
    assert train("--resume", "auto", "--schedule.warmup_epochs", 0) == 0  # the later one goes on
    steps = [len(table(tmp_path / "runs" / f"shapes-gna_nano{n}" / "steps.csv")) for n in ("", "-2")]
    assert steps == [4, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEG files: two classes, 24 and 8 pictures."""
    root = tmp_path_factory.mktemp("folder")
    for split, count in (("train", 24), ("val", 8)):
        images = Shapes(split, count, 40)
        for i in range(count):
            path = root / split / ("even", "odd")[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[i][0].save(path)
    return root


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_folder_of_jpegs_trains(folder: Path, tmp_path: Path, cache: str) -> None:
    argv = ["--data.dataset", "folder", "--data.root", folder, "--data.cache", cache, "--optim.batch_size", 8]
    argv += ["--augment.crop", "resized", "--augment.auto_augment", "rand-m9-mstd0.5-inc1", "--augment.erase", 0.25]
    argv += ["--augment.mixup", 0.8, "--augment.cutmix", 1, "--data.crop_pct", 0.875, "--data.interpolation", "random"]
    assert train(*argv, "--run.dir", tmp_path / "run") == 0
    assert len(table(tmp_path / "run" / "steps.csv")) == 6
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())
    assert state["classes"] == ["even", "odd"]


# Mistakes. Each makes one line on stderr and exit code 2.


def refuses(capsys: pytest.CaptureFixture[str], message: str, *argv: object) -> None:
    capsys.readouterr()
    assert train(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("visionattn train: error: ") and message in err, err
    assert err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.imag_size", 3], "unknown option --data.imag_size; did you mean data.image_size?"),
        (["--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["--data.dataset", "folder"], "data.root is not set"),
        (["--data.dataset", "folder", "--data.root", "no/where"], "no/where/train is not a directory"),
        (["--model.name", "gna_nan"], "model.name is 'gna_nan', which timm does not know"),
        (["--model.kwargs", "{deep: true}"], "model gna_nano cannot be built: "),
        (["--optim.batch_size", 128], "optim.batch_size is 128, but there are only 64 training images"),
        (["--resume", "no/where"], "resume: no/where is no checkpoint and no run folder with one"),
        (["--optim.name", "adamx"], "optim.name is 'adamx'"),
        (["--augment.auto_augment", "rand-q9"], "augment.auto_augment is 'rand-q9'"),
    ],
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refuses(capsys, message, *argv)
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


def test_malformed_yaml_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("optim:\n  lr: [1\nrun: x")
    refuses(capsys, f"--config {tmp_path / 'c.yaml'}: not a YAML file", "--config", tmp_path / "c.yaml")


def test_a_bad_data_folder_is_one_clear_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    argv = ["--data.dataset", "folder", "--data.root", root, "--optim.batch_size", 8, "--run.dir", tmp_path / "run"]
    root.mkdir()
    refuses(capsys, f"{root / 'train'} is not a directory", *argv)
    (root / "train").mkdir()
    refuses(capsys, f"{root / 'train'} holds no images in class directories", *argv)
    shutil.copytree(folder, root, dirs_exist_ok=True)
    (root / "val" / "odd").rename(root / "val" / "strange")
    refuses(capsys, "the splits' classes differ, for example odd, strange", *argv)
    (root / "val" / "strange").rename(root / "val" / "odd")
    (root / "train" / "odd" / "3.jpg").write_bytes(b"damaged")
    for workers in (0, 1):
        refuses(capsys, f"cannot read image {root / 'train' / 'odd' / '3.jpg'}", *argv, "--data.workers", workers)


def test_a_bad_checkpoint_is_one_clear_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--resume", trained, "--run.dir", tmp_path / "run"]
    refuses(capsys, "was trained with kwargs = ", *argv, "--model.kwargs", "{stem_stride: 4}")
    refuses(capsys, "was trained with model = gna_nano, but now it is gna_tiny", *argv, "--model.name", "gna_tiny")
    for name in ("model.safetensors", "optimizer.pt", "state.json"):
        copy = tmp_path / name
        shutil.copytree((trained / "checkpoints" / "last").resolve(), copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:50])
        refuses(capsys, f"{name} cannot be read", "--resume", copy, "--run.dir", tmp_path / "run")


def test_a_folder_that_holds_a_run_is_not_overwritten(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses(capsys, f"run.dir: {trained} already holds a run", "--run.dir", trained)
    copy = shutil.copytree((trained / "checkpoints" / "last").resolve(), tmp_path / "copy")
    refuses(capsys, f"run.dir: {trained} already holds a run", "--run.dir", trained, "--resume", copy)
    (tmp_path / "file").write_text("")
    refuses(capsys, "is a file; it must be a folder", "--run.dir", tmp_path / "file")


def test_a_gpu_that_is_not_there_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses(capsys, "run.device is cuda, but PyTorch finds no usable GPU", "--run.device", "cuda")


# As processes of their own.


def start(*argv: object, cwd: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, ROOT / "tools" / "train.py", *TINY, *argv]
    return subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True)  # fmt: skip


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_saves_and_leaves_with_its_exit_code(tmp_path: Path, number: int, workers: int) -> None:
    process = start("--run.dir", "run", "--schedule.epochs", 2000, "--data.workers", workers, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    # Ctrl-C reaches every process of the terminal's group; a batch system's SIGTERM the one it started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == f"visionattn train: stopped by signal {number}; saved, continue with --resume auto"
    assert "Traceback" not in err and "done in" not in out
    step = json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["step"]
    assert step == int(table(tmp_path / "run" / "steps.csv")[-1]["step"]) >= 4
    assert (tmp_path / "run" / "curves.png").exists()
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process is left behind


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_when_it_is_done(tmp_path: Path, ends_when_done: Callable) -> None:
    process = start("--run.dir", "run", "--data.workers", 8, "--run.device", "cuda", cwd=tmp_path)
    ends_when_done(process)


def test_the_console_script_helps_and_knows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: visionattn COMMAND" in shown and all(name in shown for name in cli.COMMANDS)
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err == "visionattn: error: unknown command 'trian'; known: " + ", ".join(cli.COMMANDS) + "\n"


def test_the_console_script_passes_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--run.seeed", "1"]) == 2
    assert "did you mean run.seed?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0 and "--schedule.epochs" in capsys.readouterr().out


def test_curves_are_drawn_on_demand_of_runs_that_have_logged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("steps.csv", "epochs.csv"):
        shutil.copy(trained / name, run)
    assert cli.main(["curves", str(run)]) == 0
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    (run / "epochs.csv").unlink()  # none has ended yet
    assert cli.main(["curves", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["curves", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == f"visionattn curves: error: {tmp_path} holds no run with a logged step (steps.csv)\n"
    )


def test_weights_and_biases_gets_the_same_numbers_and_stays_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent = []
    real = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, values, step: (sent.append((self.id, step, values)),
                                                                      real(self, values, step=step)))  # fmt: skip
    run = tmp_path / "run"
    for epochs in (1, 2):
        assert train("--run.dir", run, "--run.wandb", "tests", "--schedule.epochs", epochs, "--resume", "auto",
                     "--schedule.warmup_epochs", 0) == 0  # fmt: skip
    assert len({ident for ident, _, _ in sent}) == 1
    losses = [values["train/loss"] for _, _, values in sent if "train/loss" in values]
    assert losses == [float(row["loss"]) for row in table(run / "steps.csv")]
    assert [step for _, step, values in sent if "epoch/top1" in values] == [4, 8]
