"""``visionattn validate``: evaluates trained classifiers, one or many, on any labelled images."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import visionattn  # noqa: F401  registers the models
from visionattn.training import sources
from visionattn.training.config import DataConfig
from visionattn.training.errors import UserError, one_line
from visionattn.training.files import require_free
from visionattn.training.options import parse
from visionattn.training.trained import Choice, Origin, Trained, load, locate, running

from . import report
from .config import ValidateConfig, check
from .evaluate import Result, evaluate
from .labels import RealLabels

PROG = "visionattn validate"
DESCRIPTION = (
    "Evaluate image classifiers: accuracy (top-1, top-5, by real labels), loss, calibration and images a second. "
    "A MODEL is the folder of a run, one of its checkpoints, a folder that 'visionattn export' wrote, a file of "
    "weights with --model, or the name of a model with published weights. Images are those of the run's validation, "
    "unless --data says others. Exit code: 0, or 2 for a mistake in the options, the data or any of the models."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for what the user can put right."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        names, options = _split(arguments)
        config = parse(ValidateConfig, options, f"{PROG} MODEL [MODEL ...]", DESCRIPTION)
        check(config)
        if not names:
            raise UserError("name at least one model: a run's folder, a checkpoint, a file or a model with weights")
        return run(names, config)
    except UserError as error:
        print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(models, options): models stand before the options."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def run(names: Sequence[str], config: ValidateConfig) -> int:
    """Evaluate each model and print the table.

    Returns:
        0, or 2 where any of several models could not be evaluated; a line on stderr says why.

    Raises:
        UserError: for a mistake in the options, or the only model's.
    """
    choice = Choice(config.model, config.kwargs, config.weights, image_size=config.data.image_size)
    origins = [locate(name, choice) for name in names]
    device, precision, autocast = running(config.device, config.precision)
    real = RealLabels(config.real_labels) if config.real_labels else None
    file = report.Csv(Path(config.csv)) if config.csv else None
    if config.reliability:
        require_free(Path(config.reliability), "reliability", config.overwrite)
    setting = dict(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=precision, channels_last=config.channels_last, compile=config.compile)  # fmt: skip
    pictures = _Pictures()
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[str, Result]] = []
    failed = False
    if config.threads:
        torch.set_num_threads(config.threads)
    for origin in origins:
        try:
            trained, data = _prepare(origin, choice, config)
            result = evaluate(
                trained, pictures(data), data, device, autocast, config.bins, real, config.channels_last,
                config.compile)  # fmt: skip
        except UserError as error:
            if len(origins) == 1:
                raise
            print(f"{PROG}: error: {origin.source}: {one_line(error)}", file=sys.stderr)
            failed = True
            continue
        rows.append(report.row(trained, data, result, setting))
        drawn.append((origin.source, result))
        _tell(origin, result)
        if file is not None:
            file.add(rows[-1])
    if rows:
        print(report.table(rows))
        if file is not None:
            print(f"written: {file.path}")
        if config.reliability:
            report.draw_reliability(drawn, Path(config.reliability))
            print(f"drawn: {config.reliability}")
    return 2 if failed else 0


def _prepare(origin: Origin, choice: Choice, config: ValidateConfig) -> tuple[Trained, DataConfig]:
    trained = load(origin, choice)
    data = config.data.over(trained.data)
    if data.dataset not in ("shapes", "noise") and not data.root:
        raise UserError(f"data.root is not set; {origin.source} does not say where images are")
    if data.dataset == "wds" and not data.classes:
        data = dataclasses.replace(data, classes=len(trained.classes))
    return trained, data


def _tell(origin: Origin, result: Result) -> None:
    print(
        f"{origin.source}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} % of {result.images} images, "
        f"{result.seconds:.1f} s",
        flush=True,
    )
    for name in result.unreadable[:3]:
        print(f"skipped image {name}, which cannot be read")
    if len(result.unreadable) > 3:
        print(f"skipped {len(result.unreadable)} unreadable images")


class _Pictures:
    """Images by where they come from, so that several models share them."""

    KEYS = ("dataset", "root", "val_split", "cache", "unreadable", "input_key", "target_key", "classes", "shapes_val",
            "shapes_seed", "noise_train")  # fmt: skip

    def __init__(self):
        self.key, self.images = None, None

    def __call__(self, data: DataConfig) -> Any:
        key = tuple(getattr(data, name) for name in self.KEYS)
        key += (data.image_size,) if data.dataset in ("shapes", "noise") else ()
        if key != self.key:
            self.key, self.images = key, sources.load_split(data, "val")
        return self.images
