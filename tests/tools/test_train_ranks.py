"""Several processes under torchrun: the weights of one process, every image counted once, one log."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = "{stem_stride: 4, dims: [16, 16, 32, 32], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}"
TINY = [
    "--model.kwargs", MODEL, "--data.image_size", "32", "--data.shapes_train", "64", "--data.shapes_val", "36",
    "--data.eval_batch_size", "50", "--optim.batch_size", "16", "--schedule.epochs", "2", "--run.device", "cpu",
    "--run.log_steps", "1", "--run.threads", "1",
]  # fmt: skip


def start(ranks: int, *argv: object) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    door = [ROOT / "tools" / "train.py", *TINY, *argv]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks > 1 else []
    return subprocess.Popen(
        list(map(str, [sys.executable, *launcher, *door])), env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    return out, err


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """Folder and output of the same run by one process, and by two of which each takes half of every batch."""
    root, processes = tmp_path_factory.mktemp("ranks"), {}
    for ranks in (1, 2):
        argv = ["--run.dir", root / str(ranks), "--optim.accumulation", 2, "--data.shapes_val", 1003]
        processes[ranks] = start(ranks, *argv)
    return {ranks: (root / str(ranks), finish(process)[0]) for ranks, process in processes.items()}


@pytest.mark.parametrize("name", ["model", "ema"])
def test_two_ranks_end_with_the_weights_of_one_to_rounding(runs: dict[int, tuple[Path, str]], name: str) -> None:
    one, two = (weights(runs[ranks][0], name) for ranks in (1, 2))
    begun = max(float((x - x.mean()).abs().max()) for x in one.values())
    assert begun > 0.01
    for key, x in one.items():  # eight steps of Adam, which divides by gradients of any size
        assert (two[key] - x).abs().max() <= 1e-3 * max(float(x.abs().max()), 0.02), key


def test_an_evaluation_of_1003_images_counts_1003(runs: dict[int, tuple[Path, str]]) -> None:
    assert all("1003 images); curves" in out for _, out in runs.values())
    rows = [list(csv.DictReader((run / "epochs.csv").open())) for run, _ in runs.values()]
    for one, two in zip(*rows, strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-4)
        hits = [float(row["top1"]) * 1003 / 100 for row in (one, two)]
        assert all(abs(x - round(x)) < 1e-3 for x in hits) and abs(hits[0] - hits[1]) <= 2  # a tie may fall otherwise


def test_two_ranks_write_one_log_with_the_mean_of_their_losses(runs: dict[int, tuple[Path, str]]) -> None:
    tables = [list(csv.DictReader((run / "steps.csv").open())) for run, _ in runs.values()]
    assert [row["step"] for row in tables[1]] == [str(i) for i in range(1, 9)]
    for one, two in zip(*tables, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
    assert runs[2][1].count("epoch 1/2") == 1
    assert json.loads((runs[2][0] / "environment.json").read_text())["processes"] == 2


def test_two_ranks_stop_together_at_a_signal_and_go_on_to_the_same_end(
    runs: dict[int, tuple[Path, str]], tmp_path: Path
) -> None:
    argv = ["--run.dir", tmp_path / "run", "--optim.accumulation", 2, "--data.shapes_val", 36]
    whole = start(2, *argv[:1], tmp_path / "whole", *argv[2:], "--schedule.epochs", 4)
    finish(whole)
    process = start(2, *argv, "--schedule.epochs", 4)
    while not (tmp_path / "run" / "checkpoints" / "last").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its processes
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "saved, continue with --resume auto" in err
    step = json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["step"]
    finish(start(2, *argv, "--schedule.epochs", 4, "--resume", "auto"))
    assert 4 <= step <= 16
    for name in ("model", "ema"):
        one, two = weights(tmp_path / "whole", name), weights(tmp_path / "run", name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_mistake_is_said_once_and_ends_every_rank(tmp_path: Path) -> None:
    process = start(2, "--run.dir", tmp_path / "run", "--optim.batch_size", 15)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    line = "visionattn train: error: optim.batch_size is 15; it must be a multiple of optim.accumulation x processes"
    assert err.count(line) == 1
