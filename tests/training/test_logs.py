"""Tables that survive a killed run, TensorBoard's file, and the picture of the curves."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visionattn.training import logs
from visionattn.training.config import TrainConfig


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_rows_beyond_the_step_of_the_resume_and_half_rows_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = logs.Table(path, ["step", "loss"], 0)
    for step in (1, 2, 3):
        table.add(dict(step=step, loss=step / 2, unknown=1))
    with path.open("a") as file:
        file.write("4")  # killed in the middle of a row
    assert [row["step"] for row in logs.read_table(path)] == ["1", "2", "3"]
    logs.Table(path, ["step", "loss"], 2).add(dict(step=3, loss=9))
    assert rows(path) == ["step,loss", "1,0.5", "2,1.0", "3,9"]


def test_a_table_may_gain_a_column_on_a_resume(tmp_path: Path) -> None:
    logs.Table(tmp_path / "t.csv", ["step", "a"], 0).add(dict(step=1, a=2))
    logs.Table(tmp_path / "t.csv", ["step", "b", "a"], 1)
    assert rows(tmp_path / "t.csv") == ["step,b,a", "1,,2"]


def test_a_run_is_logged_to_tables_tensorboard_and_a_picture(tmp_path: Path) -> None:
    log = logs.RunLog(tmp_path, ["val_loss", "top1"], 0, TrainConfig())
    for step in range(1, 5):
        log.step(dict(step=step, epoch=step / 2, loss=1 / step, lr=0.1, images_per_s=10.0, memory_gib=1.5))
    log.epoch(dict(step=2, epoch=1, train_loss=0.7, val_loss=0.6, top1=40.0, seconds=1))
    log.epoch(dict(step=4, epoch=2, train_loss=0.3, val_loss=0.2, top1=60.0, seconds=2))
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("epoch/top1")] == [(2, 40.0), (4, 60.0)]
    assert [e.value for e in board.Scalars("train/loss")] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    picture = logs.draw_curves(tmp_path)
    assert picture == tmp_path / "curves.png" and picture.read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob(".*"))


def test_no_steps_make_no_picture(tmp_path: Path) -> None:
    logs.RunLog(tmp_path, ["val_loss"], 0, TrainConfig()).close()
    assert logs.draw_curves(tmp_path) is None and not (tmp_path / "curves.png").exists()


def test_environment_names_what_it_takes_to_run_again() -> None:
    found = logs.describe_environment(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] and found["device"] == "cpu"
    assert {"python", "platform", "processes", "git"} <= found.keys()


def test_the_command_of_every_start_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        logs.describe_run(tmp_path, "a: 1\n", torch.device("cpu"))
    assert len(rows(tmp_path / "command.txt")) == 2 and rows(tmp_path / "config.yaml") == ["a: 1"]
