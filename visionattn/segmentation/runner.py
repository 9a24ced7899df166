"""mmengine's Runner with checkpoints that are whole or not there, read safely, and fitted to other classes."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from visionattn.training.errors import Interrupted, UserError

from .data import classes_of
from .stack import read_checkpoint

FOR_THE_FILE = ("------", "Config:", "Hooks will be executed", "The prefix is not set", '"FileClient" will be',
                '"HardDiskBackend" is', "Distributed training is not used")  # fmt: skip


class SceneRunner(Runner):
    """A Runner for segmentors.

    What differs: a checkpoint gets its name only once it is on the disk, so a run killed while saving has the one
    before; files are read without running what they contain; weights that do not fit are refused, except those of the
    last layer of a head where the classes are others, which is begun anew; SIGINT and SIGTERM save before they stop.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As mmengine's; the machine, the whole config and the list of hooks go to the log file alone."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: not record.getMessage().lstrip().startswith(FOR_THE_FILE))
        return logger

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """As mmengine's, to a temporary name first."""
        target = Path(out_dir) / filename
        unfinished = target.with_name(f".{target.name}.tmp")
        try:
            super().save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise UserError(f"checkpoint {target} cannot be written: {error}; earlier ones are kept") from None

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a segmentor's weights, and return the whole checkpoint.

        Raises:
            UserError: where it cannot be read, is of another model, or of other classes and not to be fine-tuned.
        """
        checkpoint = read_checkpoint(filename, map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = getattr(self.model, "module", self.model)
        state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
        trained = list((checkpoint["meta"].get("dataset_meta") or {}).get("classes") or [])
        classes = self._classes()
        head = [key for key in state if re.search(r"(^|\.)(decode|auxiliary)_head\.(.*\.)?conv_seg\.", key)]
        new_head: list[str] = []
        if trained != classes and (trained or any(len(state[key]) != len(classes) for key in head)):
            what = f"checkpoint {filename} is of {len(trained) or 'other'} classes ({_few(trained)})"
            if not self.fine_tunes:
                raise UserError(f"{what}, but the data set has {len(classes)} ({_few(classes)})")
            new_head = head
            self.logger.warning(f"{what}, the data set has {len(classes)} ({_few(classes)}): the heads' last layers "
                                f"are begun anew ({', '.join(head)})")  # fmt: skip
        own = model.state_dict()
        wrong = [key for key in state if key in own and key not in new_head and state[key].shape != own[key].shape]
        missing = sorted(own.keys() - state.keys())
        unexpected = sorted(state.keys() - own.keys())
        if wrong or missing or unexpected:
            parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            said = "; ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in parts if keys)
            raise UserError(f"checkpoint {filename} is not of this model: keys {said}")
        model.load_state_dict({key: value for key, value in state.items() if key not in new_head}, strict=False)
        self._has_loaded = True
        self.logger.info(f"loaded {filename}: {len(state) - len(new_head)} tensors, no key missing or unexpected")
        return checkpoint

    @property
    def fine_tunes(self) -> bool:
        """Whether weights are only where training begins, so that other classes are fine."""
        return self._train_loop is not None and not self._resume

    def _classes(self) -> list[str]:
        loop = self._train_loop if self._train_loop is not None else self._test_loop
        return classes_of((loop.dataloader if hasattr(loop, "dataloader") else self.test_dataloader).dataset)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def newest(folder: Path) -> Path | None:
    """The checkpoint of a run folder with the most iterations, or None."""
    found = [(int(path.stem.removeprefix("iter_")), path) for path in folder.glob("iter_*.pth")]
    return max(found)[1] if found else None


class StopCleanly(Hook):
    """Ctrl-C and SIGTERM end the run after the current iteration, with a checkpoint."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.asked = 0
        self.before: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask())

    def _ask(self) -> Callable[[int, Any], None]:
        def note(number: int, _: Any) -> None:
            self.asked = number

        return note

    def give_back(self) -> None:
        """The signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and leave, if asked.

        Raises:
            Interrupted: after it was saved.
        """
        if self.asked:
            done = runner.iter + 1
            runner.save_checkpoint(runner.work_dir, f"iter_{done}.pth", meta=dict(iter=done, epoch=0), by_epoch=False)
            raise Interrupted(self.asked)

    def after_train(self, runner: Runner) -> None:
        """Training is over: the signals do again what they did before."""
        self.give_back()
