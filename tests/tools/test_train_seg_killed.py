"""Segmentation runs killed with SIGKILL at any moment, or asked to stop, go on from their last checkpoint."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .test_train_seg import ROOT, SHAPES, TINY

pytest.importorskip("mmseg", reason="needs the extra seg")
pytestmark = pytest.mark.slow
STEPS = 20
ARGV = [*TINY, *SHAPES, "default_hooks.checkpoint.interval=1", "--device", "cpu", "--threads", "1", "--pictures", "0"]


def start(folder: Path, *more: str) -> subprocess.Popen:
    argv = [*ARGV, "--iterations", str(STEPS), "--run-dir", str(folder), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "visionattn.cli", "train-seg", *argv], cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip


def last(folder: Path) -> int:
    return max((int(re.search(r"\d+", path.name)[0]) for path in folder.glob("iter_*.pth")), default=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return folder


@pytest.mark.parametrize("turn", range(3))
def test_killed_and_resumed_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path, equal_bits: Callable, turn: int
) -> None:
    rng, folder = random.Random(turn), tmp_path / "run"
    process = start(folder)
    goal = rng.randint(3, STEPS - 5)
    while last(folder) < goal:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    if turn:  # while it saves
        while not list(folder.glob(".iter_*.tmp")) and process.poll() is None:
            pass
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and goal <= last(folder) < STEPS
    process = start(folder, "--resume", "auto")
    _, err = process.communicate()
    assert process.returncode == 0, err
    one, two = (torch.load(path / f"iter_{STEPS}.pth", weights_only=False) for path in (undisturbed, folder))
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert equal_bits(one[part], two[part]), part


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path / "run", "--set", *TINY[1:], *SHAPES, "default_hooks.checkpoint.interval=100")
    while not list((tmp_path / "run").glob("*/vis_data/scalars.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert err.strip().splitlines()[-1].endswith(f"stopped by signal {int(number)}; saved, continue with --resume auto")
    assert last(tmp_path / "run") >= 1
