"""Checkpoints: whole or not there, readable after a crash at any moment, and clear about damage."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from visionattn.training import checkpoint
from visionattn.training.checkpoint import EMA, MODEL, OPTIMIZER, STATE, Checkpoint
from visionattn.training.errors import UserError


def make(step: int, ema: bool = True) -> Checkpoint:
    weights = {"w": torch.full((3,), float(step)), "n": torch.tensor(step)}
    state = dict(step=step, best=0.5, config={"optim": {"name": "adamw"}})
    return Checkpoint(
        weights, {k: v * 2 for k, v in weights.items()} if ema else {}, {"state": {0: weights["w"]}}, state
    )


def folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, equal_bits: Callable, ema: bool) -> None:
    saved = make(7, ema)
    saved.model["t"] = torch.arange(6.0).reshape(2, 3).t()  # not contiguous
    target = checkpoint.save(tmp_path / "c", saved)
    assert equal_bits(vars(checkpoint.load(target)), vars(saved))
    assert (target / EMA).exists() == ema


def test_links_swap_and_older_checkpoints_go(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(1), best=True)
    assert folders(tmp_path) == {"step-00000001", "last", "best"}
    checkpoint.save(tmp_path, make(2))
    checkpoint.save(tmp_path, make(3))
    assert folders(tmp_path) == {"step-00000001", "step-00000003", "last", "best"}
    checkpoint.save(tmp_path, make(4), best=True)
    assert folders(tmp_path) == {"step-00000004", "last", "best"}
    assert os.readlink(tmp_path / "last") == "step-00000004"  # relative: the run folder can be moved


@pytest.mark.parametrize("broken", ["save_file", "torch.save", "os.rename", "os.replace", "os.fsync"])
def test_a_crash_while_saving_leaves_the_last_checkpoint_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    checkpoint.save(tmp_path, make(1), best=True)

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    owner, name = {
        "save_file": (checkpoint, "save_file"), "torch.save": (torch, "save"), "os.rename": (os, "rename"),
        "os.replace": (os, "replace"), "os.fsync": (os, "fsync"),
    }[broken]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, make(2))
    for link in ("last", "best"):
        assert checkpoint.load(checkpoint.find(tmp_path / link)).state["step"] == 1
    checkpoint.save(tmp_path, make(2))
    assert folders(tmp_path) == {"step-00000001", "step-00000002", "last", "best"}


def test_half_a_checkpoint_never_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        assert not list(tmp_path.glob("step-*"))
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(UserError, match="step-00000001 cannot be written: disk full; earlier ones are kept"):
        checkpoint.save(tmp_path, make(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [MODEL, EMA, OPTIMIZER, STATE])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    file = checkpoint.save(tmp_path, make(1)) / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "noise": b"\x93" * len(content), "empty": b""}[damage])
    with pytest.raises(UserError, match=f"{name} cannot be read") as error:
        checkpoint.load(file.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    target = checkpoint.save(tmp_path, make(1))
    (target / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        checkpoint.load(target)


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 1}', "3"])
def test_a_state_that_is_not_a_run_s_is_refused(tmp_path: Path, text: str) -> None:
    target = checkpoint.save(tmp_path, make(1))
    (target / STATE).write_text(text)
    with pytest.raises(UserError, match="state.json cannot be read: it is not the state of a run"):
        checkpoint.load(target)


def test_loading_runs_no_code_that_a_file_contains(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    target = checkpoint.save(tmp_path / "c", make(1))
    torch.save(Trap(), target / OPTIMIZER)
    with pytest.raises(UserError, match="optimizer.pt cannot be read"):
        checkpoint.load(target)
    assert not (tmp_path / "sprung").exists()


def test_find_takes_a_checkpoint_its_links_and_its_run(tmp_path: Path) -> None:
    target = checkpoint.save(tmp_path / "run" / "checkpoints", make(5))
    for path in (target, target.parent / "last", target.parent, tmp_path / "run"):
        assert checkpoint.find(path) == target.resolve()
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is no checkpoint and no run folder with one"):
            checkpoint.find(path)


def test_rewinding_drops_what_came_later(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, make(1), best=True)
    checkpoint.save(tmp_path, make(2))
    checkpoint.rewind(first)
    assert folders(tmp_path) == {"step-00000001", "last", "best"}
    assert checkpoint.find(tmp_path) == first.resolve()
