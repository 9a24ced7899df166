"""Runs killed with SIGKILL, while they save too, end after a resume with the bits of a run that was left alone."""

import multiprocessing
import random
import runpy
import shutil
import signal
import tarfile
import time
from pathlib import Path

import pytest

from visionattn.training import checkpoint, logs
from visionattn.training.shapes import Shapes

MODEL = "{stem_stride: 4, dims: [16, 16, 32, 32], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}"
RECIPE = [
    "--model.kwargs", MODEL, "--model.drop_path", "0.1", "--data.image_size", "32", "--optim.batch_size", "16",
    "--optim.accumulation", "2", "--schedule.epochs", "3", "--run.device", "cpu", "--run.log_steps", "1",
    "--run.threads", "1", "--run.checkpoint_steps", "1", "--run.progress", "false", "--augment.crop", "resized",
    "--augment.auto_augment", "rand-m9-mstd0.5-inc1", "--augment.mixup", "0.8", "--augment.cutmix", "1",
    "--augment.erase", "0.5",
]  # fmt: skip
ROUNDS = [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))]

# Killing takes processes of their own; what they have to import is imported once, in the server they are forked from.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["visionattn.training.train"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as folders and as tar files."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 96), ("val", 20)):
        pictures = Shapes(split, count, 40)
        for i in range(count):
            path = root / split / "abcd"[i % 4] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures[i][0].save(path)
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, split)
    return root


SCRIPT = """
import multiprocessing, os, sys
from visionattn.training import logs
from visionattn.training.train import main
multiprocessing.set_start_method(None, force=True)  # this process's own starts workers as the tool does
os.setpgid(0, 0)
with open({log!r}, "a") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
logs.draw_curves = lambda folder: None  # it takes longer than the run does
sys.exit(main({argv!r}))
"""


def _start(argv: list[str], log: Path) -> multiprocessing.Process:
    script = log.with_suffix(".py")
    script.write_text(SCRIPT.format(log=str(log), argv=argv))
    log.touch()
    process = processes.Process(target=runpy.run_path, args=(str(script), None, "__main__"))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run that nobody kills, and how many seconds it took from its first checkpoint on."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = _start([*RECIPE, "--data.dataset", "folder", "--data.root", str(images), "--run.dir", str(run)],
                     run.with_suffix(".log"))  # fmt: skip
    while not (run / "checkpoints" / "last").exists() and process.is_alive():
        time.sleep(0.005)
    begun = time.perf_counter()
    process.join()
    assert process.exitcode == 0, run.with_suffix(".log").read_text()
    return run, time.perf_counter() - begun


@pytest.mark.parametrize("turn", ROUNDS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", ["folder", "tar"])
def test_killed_at_a_random_moment_and_resumed_ends_with_the_same_bits(
    images: Path, undisturbed: tuple[Path, float], tmp_path: Path, equal_bits, dataset: str, workers: int, turn: int
) -> None:
    whole, seconds = undisturbed
    rng = random.Random(f"{dataset} {workers} {turn}")
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*RECIPE, "--data.dataset", dataset, "--data.root", str(images), "--data.workers", str(workers)]
    argv += ["--run.dir", str(run), "--resume", "auto"]
    process = _start(argv, log)
    while not (run / "checkpoints" / "last").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.9 * seconds))
    saving = turn % 2 == 0
    if saving:  # in the middle of it
        while process.is_alive() and not list((run / "checkpoints").glob(".step-*.tmp")):
            pass
        time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    cut = checkpoint.load(checkpoint.find(run)).state["step"]
    process = _start(argv, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    one, two = (checkpoint.load(checkpoint.find(path)) for path in (whole, run))
    assert one.state["step"] == two.state["step"] == 18 and cut <= 18
    for part in ("model", "ema", "optimizer"):
        assert equal_bits(getattr(one, part), getattr(two, part)), (part, cut)
    assert one.optimizer["state"] and one.ema
    for name, columns in (("steps.csv", ("step", "loss", "lr")), ("epochs.csv", ("step", "val_loss", "top1"))):
        assert len({
            tuple(tuple(row[column] for column in columns) for row in logs.read_table(path / name))
            for path in (whole, run)
        }) == 1, (name, cut)  # fmt: skip
    assert not list((run / "checkpoints").glob(".*.tmp"))
    shutil.rmtree(run)
