"""Several models in processes of their own: all compile at once, and each is timed while the others wait."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from visionattn.training.errors import UserError


class Turns:
    """When a measurement has the device for itself: always, for one that runs alone."""

    def searching(self) -> contextlib.AbstractContextManager:
        """Around what chooses by rough times."""
        return contextlib.nullcontext()

    def timing(self) -> contextlib.AbstractContextManager:
        """Around what is kept; before it all is compiled."""
        return contextlib.nullcontext()


class OneByOne(Turns):
    """Turns of processes beside each other: one searches or times at a time, and none times before all are ready.

    Args:
        lock: a file, locked by the process whose turn it is; one that dies gives it back.
        ready: told when this process has compiled.
        go: set when all have.
    """

    def __init__(self, lock: Path, ready: Connection, go: Any):
        self.lock, self.ready, self.go = lock, ready, go

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        with open(self.lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        if torch.cuda.is_initialized():  # what waits must not hold what others need
            gc.collect()
            torch.cuda.empty_cache()
        self.ready.send(None)
        self.go.wait()
        with self.searching():
            yield


def _child(measure: Callable[..., dict], arguments: tuple, lock: Path, answer: Connection, go: Any) -> None:
    try:
        found: object = measure(*arguments, OneByOne(lock, answer, go))
    except UserError as error:
        found = error
    answer.send((found,))


def run(measure: Callable[..., dict], jobs: Sequence[tuple], count: int) -> Iterator[tuple[tuple, dict]]:
    """Calls ``measure(*job, turns)`` for every job, each in a process of its own, ``count`` at a time.

    Args:
        measure: a function of a module, as it goes to other processes; keeps to the turns that it gets last.
        jobs: its other arguments.
        count: processes beside each other.

    Yields:
        (job, what was returned), in the jobs' order; a job whose process died gives a ``note``.

    Raises:
        UserError: where a job did.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.NamedTemporaryFile() as lock:
        for start in range(0, len(jobs), count):
            wave, go, running = jobs[start : start + count], context.Event(), []
            try:
                for job in wave:
                    mine, theirs = context.Pipe()
                    process = context.Process(target=_child, args=(measure, job, Path(lock.name), theirs, go))
                    process.start()
                    theirs.close()
                    running.append((process, mine))
                early = [_hear(mine) for _, mine in running]  # ready, or already at its end
                go.set()
                for job, (process, mine), said in zip(wave, running, early):
                    found = _hear(mine) if said is None else said
                    process.join()
                    if isinstance(found, UserError):
                        raise found
                    yield job, found
            finally:
                for process, _ in running:
                    process.kill()


def _hear(connection: Connection) -> Any:
    """None from a process that is ready, else what it ends with."""
    try:
        said = connection.recv()
    except EOFError:
        return dict(note="its process died")
    return None if said is None else said[0]
