"""FSDP2, several processes that train a detector, and a killed one, under torchrun on a CPU."""

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
COMMON = ["--model.kwargs", MODEL, "--schedule.epochs", "4", "--run.device", "cpu", "--run.log_steps", "1",
          "--run.threads", "1", "--run.eval_every", "4"]  # fmt: skip
TOOLS = {
    "train": [*COMMON, "--data.image_size", "32", "--data.shapes_train", "64", "--data.shapes_val", "37",
              "--data.eval_batch_size", "9", "--optim.batch_size", "16", "--run.channels_last", "true"],
    "train_det": [*COMMON, "--model.fpn_channels", "64", "--model.head_convs", "1", "--data.shapes_size", "64",
                  "--data.short_side", "64", "--data.long_side", "96", "--data.shapes_train", "16",
                  "--data.shapes_val", "7", "--data.eval_batch_size", "2", "--optim.batch_size", "4",
                  "--run.drawings", "0"],
}  # fmt: skip
pytestmark = pytest.mark.slow


def start(tool: str, ranks: int, *argv: object) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks > 1 else []
    return subprocess.Popen(
        list(map(str, [sys.executable, *launcher, ROOT / "tools" / f"{tool}.py", *TOOLS[tool], *argv])), env=env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{name}.safetensors")


def near(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Equal but for the rounding of sums, which steps of Adam make more of."""
    assert one.keys() == two.keys()
    for key, x in one.items():
        assert (two[key] - x).abs().max() <= 2e-3 * max(float(x.abs().max()), 0.02), key


def first_checkpoint(process: subprocess.Popen, run: Path) -> None:
    while not (run / "checkpoints" / "last").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize("tool", ["train", "train_det"])
def test_two_processes_in_either_mode_end_with_the_weights_of_one(tool: str, tmp_path: Path) -> None:
    # detectors' losses are divided by the objects of the images that come together: as many parts for one process
    ways = {"one": (1, ["--optim.accumulation", 2]), "ddp": (2, []), "fsdp2": (2, ["--run.parallel", "fsdp2"])}
    for name, (ranks, argv) in ways.items():
        finish(start(tool, ranks, "--run.dir", tmp_path / name, *argv))
    for name in ("ddp", "fsdp2"):
        for part in ("model", "ema"):
            near(weights(tmp_path / "one", part), weights(tmp_path / name, part))
    score = "top1" if tool == "train" else "box_ap50"
    scores = [float(list(csv.DictReader((tmp_path / name / "epochs.csv").open()))[-1][score]) for name in ways]
    assert max(scores) - min(scores) <= (6 if tool == "train" else 0.06)


def test_fsdp2_stopped_and_resumed_ends_with_the_same_bits_and_ddp_can_go_on(tmp_path: Path) -> None:
    mode = ["--run.parallel", "fsdp2"]
    finish(start("train", 2, "--run.dir", tmp_path / "whole", *mode))
    process = start("train", 2, "--run.dir", tmp_path / "cut", *mode)
    first_checkpoint(process, tmp_path / "cut")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert "saved, continue with --resume auto" in err
    cut = tmp_path / "cut" / "checkpoints" / "last"
    assert 4 <= json.loads((cut / "state.json").read_text())["step"] < 16
    finish(start("train", 2, "--run.dir", tmp_path / "ddp", "--resume", cut.resolve()))
    finish(start("train", 2, "--run.dir", tmp_path / "cut", "--resume", "auto", *mode))
    for name in ("model", "ema"):
        whole, again = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
        assert all(torch.equal(whole[key], again[key]) for key in whole)
        near(whole, weights(tmp_path / "ddp", name))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_line_within_a_minute_and_it_goes_on(tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    process = start("train_det", 2, "--run.dir", run, "--schedule.epochs", 30)
    first_checkpoint(process, run)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    told = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    victim = next(int(child) for child, environment in told.items() if f"RANK={rank}".encode() in environment)
    begun = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and time.monotonic() - begun < 60
    lines = [line for line in err.splitlines() if line.startswith("visionattn")]
    assert len(lines) == 1 and "start again with --resume auto" in lines[0], err
    step = json.loads((run / "checkpoints" / "last" / "state.json").read_text())["step"]
    out = finish(start("train_det", 2, "--run.dir", run, "--resume", "auto"))  # four epochs, or as many as it had
    assert f"from step {step}" in out
