"""Work spread over processes that live as long as the work."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def in_processes(function: Callable[..., Any], jobs: Sequence[tuple], processes: int | None = None) -> list[Any]:
    """``[function(*job) for job in jobs]`` by several processes, each as a fork of this one.

    Args:
        function: what is called; it and its results can be pickled.
        jobs: the arguments of each call.
        processes: how many there are at most; None takes one a core, 1 works in this one.
    """
    count = min(processes or os.cpu_count() or 1, len(jobs))
    if count <= 1:
        return [function(*job) for job in jobs]
    # Fork: nothing is imported again, and what exists is shared. A process group each: Ctrl-C goes to the parent alone.
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork"), os.setpgid, (0, 0)) as pool:
        return list(pool.map(function, *zip(*jobs)))
