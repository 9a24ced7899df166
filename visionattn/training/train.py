"""``visionattn train``: trains an image classifier. With no options at all: gna_nano on the generated set `shapes`."""

from __future__ import annotations

from collections.abc import Sequence

from .classification import Classification
from .config import TrainConfig, validate
from .run import command, run_task

DESCRIPTION = (
    "Train an image classifier. With no options: gna_nano on the generated data set 'shapes', on a CPU in minutes."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code, as :func:`.run.command` says."""
    return command("train", DESCRIPTION, TrainConfig, validate, run, argv)


def run(config: TrainConfig) -> dict[str, float]:
    """Train as the options say.

    Returns:
        The last evaluation: val_loss, top1 and top5 (%).

    Raises:
        UserError: for a mistake in the options, the data or the checkpoint to resume.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    return run_task(config, Classification)
