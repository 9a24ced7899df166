"""What a run leaves to read: CSV tables, TensorBoard, the picture of the curves, and who ran what where."""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from visionattn.environment import git_revision, versions

from .errors import UserError, first_line
from .options import plain
from .recipe import Recipe


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Table:
    """A CSV file that grows by a row at a time; rows after ``start`` steps, of a run cut short, are dropped first."""

    def __init__(self, path: Path, columns: list[str], start: int):
        self.path, self.columns = path, columns
        rows = [row for row in read_table(path) if int(row["step"]) <= start] if path.exists() else []
        lines = [columns] + [[row.get(column, "") for column in columns] for row in rows]
        write_text(path, "".join(",".join(map(str, line)) + "\n" for line in lines))

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([row.get(column, "") for column in self.columns])


def read_table(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file (a killed run may leave half a row at the end)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and row.get("step", "").isdigit()]


class RunLog:
    """All logs of one run folder.

    Args:
        folder: the run's folder.
        metrics: names of what an evaluation measures.
        start: steps done before, 0 for a new run.
        config: the run's options; ``run.wandb`` names a Weights & Biases project to log to as well.

    Raises:
        UserError: for Weights & Biases without its package.
    """

    def __init__(self, folder: Path, metrics: list[str], start: int, config: Recipe):
        self.folder = folder
        self.steps = Table(folder / "steps.csv", ["step", "epoch", "loss", "lr", "images_per_s", "memory_gib"], start)
        self.epochs = Table(folder / "epochs.csv", ["step", "epoch", "train_loss", *metrics, "seconds"], start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        self.wandb = _start_wandb(folder, config) if config.run.wandb else None
        self._named = 0

    def step(self, row: dict[str, Any]) -> None:
        self.steps.add(row)
        self._both("train", {name: row[name] for name in self.steps.columns[2:]}, row["step"])

    def epoch(self, row: dict[str, Any]) -> None:
        self.epochs.add(row)
        self._both("epoch", {name: row[name] for name in self.epochs.columns[2:-1] if name in row}, row["step"])
        self.board.flush()

    def _both(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def unreadable(self, names: dict[str, int]) -> list[str]:
        """Keep unreadable.txt up to date; what there is to say of images that are new in it."""
        new = list(names)[self._named :]
        if not new:
            return []
        self._named = len(names)
        write_text(self.folder / "unreadable.txt", "".join(f"{name}\n" for name in names))
        shown = [f"skipped image {name}, which cannot be read" for name in new[:3]]
        return [*shown, f"skipped {len(names)} unreadable images so far: {self.folder / 'unreadable.txt'}"]

    def close(self) -> None:
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _start_wandb(folder: Path, config: Recipe) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("run.wandb is set, which needs the package wandb: pip install wandb") from None
    kept = folder / "wandb_id.txt"  # the same run there, however often it is resumed here
    if not kept.exists():
        write_text(kept, secrets.token_hex(4) + "\n")
    try:
        return wandb.init(
            project=config.run.wandb, name=folder.name, id=kept.read_text().strip(), resume="allow", dir=str(folder),
            config=plain(config))  # fmt: skip
    except wandb.errors.Error as error:
        raise UserError(f"run.wandb is {config.run.wandb!r}: {first_line(error)}") from None


def memory_gib(device: torch.device) -> float:
    """The most memory so far: reserved on a GPU by PyTorch, else resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and git revision: what it takes to run the same again."""
    names = ("visionattn", "torch", "torchvision", "timm", "accelerate", "triton", "numpy")
    return dict(
        python=platform.python_version(), platform=platform.platform(), versions=versions(names),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        processes=int(os.environ.get("WORLD_SIZE", 1)), git=git_revision())  # fmt: skip


def describe_run(folder: Path, config_yaml: str, device: torch.device) -> None:
    """Write config.yaml, environment.json and, one line more at every start, command.txt."""
    write_text(folder / "config.yaml", config_yaml)
    write_text(folder / "environment.json", json.dumps(describe_environment(device), indent=1) + "\n")
    with (folder / "command.txt").open("a", encoding="utf-8") as file:
        file.write(shlex.join(sys.argv) + "\n")


def draw_curves(folder: Path) -> Path | None:
    """Draw loss, evaluation and learning rate over the epochs into curves.png; None where there is nothing yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, epochs = (
        read_table(path) if path.exists() else [] for path in (folder / "steps.csv", folder / "epochs.csv")
    )
    if not steps:
        return None
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, rate = figure.subplots(1, 3)
    x = [float(row["epoch"]) for row in steps]
    loss.plot(x, [float(row["loss"]) for row in steps], color="tab:blue", linewidth=0.8, label="training, by step")
    loss.set(title="Loss", xlabel="epoch", yscale="log")
    known = ("step", "epoch", "train_loss", "seconds")
    names = [name for name in (epochs[0] if epochs else {}) if name not in known]
    for name in names:
        points = [(float(row["epoch"]), float(row[name])) for row in epochs if row[name]]
        axis = loss if name.endswith("loss") else score
        label = name.replace("val_", "validation ")
        if points:
            axis.plot(
                *zip(*points, strict=True), marker="o", markersize=3, label=f"{label}: {points[-1][1]:.4g} at the end"
            )
    loss.legend(fontsize=8)
    what = "accuracy (%)" if "top1" in names else "average precision"
    score.set(title=f"Validation {what}", xlabel="epoch")
    if score.lines:
        score.legend(fontsize=8, loc="lower right")
    rate.plot(x, [float(row["lr"]) for row in steps], color="tab:green")
    rate.set(title="Learning rate", xlabel="epoch")
    for axis in (loss, score, rate):
        axis.grid(alpha=0.3)
    path = folder / "curves.png"
    temporary = path.with_name(".curves.tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    return path
