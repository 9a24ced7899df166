"""What evaluations leave: rows of a CSV file, a table for people, a picture of calibration."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visionattn.training.config import DataConfig
from visionattn.training.errors import UserError
from visionattn.training.files import aside
from visionattn.training.trained import Trained

from .evaluate import Result

COLUMNS = (
    "source", "model", "weights", "parameters_m", "dataset", "root", "split", "image_size", "interpolation", "crop_pct",
    "crop_mode", "images", "unreadable", "top1", "top5", "real_top1", "real_top5", "loss", "ece", "mce",
    "images_per_s", "seconds", "batch_size", "device", "precision", "channels_last", "compile", "torch",
)  # fmt: skip


def row(trained: Trained, data: DataConfig, result: Result, setting: dict[str, Any]) -> dict[str, Any]:
    """The columns of one evaluation.

    Args:
        trained: the model.
        data: the images, and how they become its input.
        result: what was found.
        setting: device, precision, channels_last and compile.
    """
    values = {name: getattr(result, name) for name in COLUMNS if hasattr(result, name)}
    values.update(
        source=trained.origin.source, model=trained.name, weights=trained.origin.weights,
        parameters_m=sum(p.numel() for p in trained.model.parameters()) / 1e6, dataset=data.dataset, root=data.root,
        split=data.val_split, image_size=data.image_size, interpolation=data.interpolation, crop_pct=data.crop_pct,
        crop_mode=data.crop_mode, unreadable=len(result.unreadable), batch_size=data.eval_batch_size,
        torch=torch.__version__, **setting)  # fmt: skip
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


class Csv:
    """A CSV file that gets a row a model, rewritten whole each time.

    Args:
        path: the file; rows that are there stay.

    Raises:
        UserError: where it is there, but no such table.
    """

    def __init__(self, path: Path):
        self.path, self.text = path, ",".join(COLUMNS) + "\n"
        if not path.exists():
            return
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"csv: {path} cannot be read: {error}") from None
        if not text.startswith(self.text):
            raise UserError(f"csv: {path} is there, but no table of this command; name another file")
        self.text = text if text.endswith("\n") else text + "\n"

    def add(self, values: dict[str, Any]) -> None:
        """One more row."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            ["" if values.get(name) is None else values[name] for name in COLUMNS]
        )
        self.text += line.getvalue()
        with aside(self.path) as temporary:
            temporary.write_text(self.text, encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text: one line a model."""
    real = ["real_top1", "real_top5"] if any(values.get("real_top1") is not None for values in rows) else []
    header = ["model", "weights", "images", "size", "top-1 %", "top-5 %", "loss", "ECE %", "images/s"]
    header[6:6] = ["real top-1 %", "real top-5 %"] if real else []
    lines = [header]
    for values in rows:
        percent = [values["top1"], values["top5"], *(values.get(name) for name in real)]
        lines.append([
            str(values["source"]), values["weights"], str(values["images"]), str(values["image_size"]),
            *("-" if value is None else f"{value:.2f}" for value in percent), f"{values['loss']:.4f}",
            f"{values['ece']:.2f}", f"{values['images_per_s']:,.0f}"])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [str.ljust] * 2 + [str.rjust] * (len(widths) - 2)
    return "\n".join("  ".join(align(*both) for align, *both in zip(aligned, line, widths)) for line in lines)


def draw_reliability(results: Sequence[tuple[str, Result]], path: Path) -> None:
    """Accuracy against confidence, and how many answers have which confidence, of each model into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([0, 100], [0, 100], color="0.6", linestyle="--", linewidth=1, label="perfect calibration")
    for name, result in results:
        full = [(100 * confidence, 100 * accuracy) for n, confidence, accuracy in result.bins if n]
        (line,) = left.plot(*zip(*full), linewidth=1.2, label=f"{name}: ECE {result.ece:.2f} %")
        areas = [10 + 150 * n / result.images for n, _, _ in result.bins if n]
        left.scatter(*zip(*full), s=areas, color=line.get_color(), zorder=3)
        shares = [100 * n / result.images for n, _, _ in result.bins]
        right.stairs(shares, [100 * i / len(shares) for i in range(len(shares) + 1)], linewidth=1.6)
    left.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 103), title="Reliability")
    right.set(xlabel="confidence (%)", ylabel="images (%)", xlim=(0, 100), title="Confidence of the answers")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center")
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
