"""Checkpoints: written whole or not at all, and read without running anything that they contain.

``FOLDER/step-00001234/`` holds model.safetensors, ema.safetensors, optimizer.pt and state.json; ``last`` and ``best``
are links to such folders. A folder gets its name only when it is complete, and a link is swapped in one step, so a run
killed at any moment leaves its last complete checkpoint behind.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import UserError, first_line

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"


@dataclass
class Checkpoint:
    """The state of a run between two optimiser steps.

    Attributes:
        model: the model's state dict.
        ema: the averaged state dict; empty if the run keeps none.
        optimizer: the optimiser's state dict.
        state: plain values: step, epoch, best score, model name and arguments, class names, options.
    """

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, best: bool = False) -> Path:
    """Write a checkpoint, point ``last`` (and ``best``) at it, and drop those that neither points at any more.

    Raises:
        UserError: where it cannot be written, on a full disk for example; what was there before stays.
    """
    target = folder / f"step-{checkpoint.state['step']:08d}"
    if not target.exists():
        unfinished = folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _write(unfinished, checkpoint)
            os.rename(unfinished, target)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeErrors
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = first_line(error)
            raise UserError(
                f"run.dir: checkpoint {target} cannot be written: {reason}; earlier ones are kept"
            ) from None
        _flush(folder)
    _point(folder / "last", target)
    if best:
        _point(folder / "best", target)
    kept = {(folder / name).resolve().name for name in ("last", "best")}
    for old in [*folder.glob("step-*"), *folder.glob(".*.tmp")]:
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(_apart(checkpoint.model), folder / MODEL)
    if checkpoint.ema:
        save_file(_apart(checkpoint.ema), folder / EMA)
    torch.save(checkpoint.optimizer, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        _flush(file)


def rewind(target: Path) -> None:
    """Make a checkpoint the last of its run: drop the later ones, as the run takes another way from here."""
    folder = target.parent
    later = [other for other in folder.glob("step-*") if other.name > target.name]
    _point(folder / "last", target)
    if (folder / "best").resolve() in later:
        _point(folder / "best", target)
    for other in later:
        shutil.rmtree(other, ignore_errors=True)


def find(path: Path) -> Path:
    """The checkpoint folder that a user means by ``path``: itself, a run folder, or that run's checkpoints folder.

    Raises:
        UserError: where there is none.
    """
    for candidate in (path, path / "last", path / "checkpoints" / "last"):
        if (candidate / STATE).is_file():
            return candidate.resolve()
    raise UserError(f"resume: {path} is no checkpoint and no run folder with one (no {STATE} in it)")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    file = folder / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not {"step", "best", "config"} <= state.keys():
            raise ValueError("it is not the state of a run")
        file = folder / MODEL
        model = load_file(file)
        file = folder / EMA
        ema = load_file(file) if file.exists() else {}
        file = folder / OPTIMIZER
        optimizer = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each format's library has errors of its own for a damaged file
        raise UserError(
            f"checkpoint {file} cannot be read: {first_line(error)}"
        ) from None
    return Checkpoint(model, ema, optimizer, state)


def _apart(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}


def _flush(path: Path) -> None:
    """Onto the disk before anything that relies on it is renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)
