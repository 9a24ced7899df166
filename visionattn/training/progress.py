"""What a terminal shows while a run runs."""

from __future__ import annotations

from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """A bar with loss, images a second, memory and time left where the output is a terminal; plain lines everywhere.

    Args:
        console: where it is drawn.
        bar: whether to draw a bar (never off a terminal).
        steps: steps of the run.
        start: steps done before.
    """

    def __init__(self, console: Console, bar: bool, steps: int, start: int):
        self.console = console
        self._bar = None
        if bar and console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("epoch {task.fields[epoch]:.2f}"), rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(), rich_progress.TextColumn("loss {task.fields[loss]:.4f}"),
                rich_progress.TextColumn("{task.fields[speed]:,.0f} images/s"),
                rich_progress.TextColumn("{task.fields[memory]:.1f} GiB"), rich_progress.TimeElapsedColumn(),
                rich_progress.TimeRemainingColumn(), console=console)  # fmt: skip
            self._task = self._bar.add_task(
                "train", total=steps, completed=start, epoch=0.0, loss=float("nan"), speed=0.0, memory=0.0
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, epoch: float, loss: float, speed: float, memory: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, epoch=epoch, loss=loss, speed=speed, memory=memory)

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
