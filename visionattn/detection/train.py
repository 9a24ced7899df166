"""``visionattn train-det``: trains a detector. With no options at all: FCOS with gna_nano on the generated `shapes`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from visionattn.training.errors import UserError
from visionattn.training.run import command, run_task

from .config import DetConfig, validate

DESCRIPTION = (
    "Train a detector. With no options: FCOS with gna_nano on the generated data set 'shapes', on a CPU in minutes."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code, as :func:`visionattn.training.run.command` says."""
    return command("train-det", DESCRIPTION, DetConfig, validate, run, argv)


def run(config: DetConfig) -> dict[str, float]:
    """Train as the options say.

    Returns:
        The last evaluation: box_ap, box_ap50, box_ap75 in [0, 1], and those of masks from Mask R-CNN.

    Raises:
        UserError: for a mistake in the options, the data or the checkpoint to resume.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        Lost: where another process of the run is gone.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError("detection needs the package pycocotools: pip install -e '.[det]'")
    from .task import Detection

    return run_task(config, Detection)
