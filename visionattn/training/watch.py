"""Notices that a process of a run is gone, killed or with its whole machine, and ends the others with one line."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

BEAT, SILENCE = 1.0, 20.0  # seconds between two signs of life, and without one until a process counts as gone
PREFIX = "visionattn/watch"
WHAT_NOW = "the last checkpoint is kept: start again with --resume auto"


class Lost(Exception):
    """Another process of the run is gone; what there is to say of it has been said."""


class Watch:
    """While the block runs, every process gives signs of life and listens for those of the next one.

    A process that waits for a dead one in a collective may hear nothing of it until the process group's timeout. So
    signs of life go through the store that the processes met at, from a thread of their own: whoever misses the
    next process says so, once for all of them, and ends; the others end when they read that. Costs three small
    requests a second.

    Args:
        rank: this process among ``world``.
        world: number of processes; nothing is watched for 1.
        command: what begins the line on stderr.
        silence: seconds without a sign of life until a process counts as gone.
    """

    def __init__(self, rank: int, world: int, command: str = "visionattn", silence: float = SILENCE):
        self.rank, self.world, self.command, self.silence = rank, world, command, silence
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: dist.Store | None = None

    def __enter__(self) -> Watch:
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if self.world > 1 and address and port:
            # connections of our own, as one that waits for an answer keeps the other thread out
            self._store, mine = (
                dist.PrefixStore(self._round(), dist.TCPStore(address, int(port), timeout=timedelta(seconds=10)))
                for _ in range(2)
            )
            self._thread = threading.Thread(target=self._beat, args=(mine,), daemon=True)
            self._thread.start()
        return self

    @staticmethod
    def _round() -> str:
        """Keys of this start of the run alone: torchrun may start its processes again beside the same store."""
        return f"{PREFIX}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is None:
            return
        self._end.set()
        self._thread.join(timeout=5)
        if isinstance(error, RuntimeError) and _broken(error):
            self._say("lost the connection to another process of the run, which may have been killed")
            raise Lost from None

    def _beat(self, store: dist.Store) -> None:
        following, count = (self.rank + 1) % self.world, 0
        heard, since = "", time.monotonic()
        try:
            while not self._end.wait(BEAT):
                count += 1
                store.set(f"alive/{self.rank}", f"{count} {socket.gethostname()} {os.getpid()}")
                if store.check(["gone"]):
                    os._exit(1)
                key = f"alive/{following}"
                now = store.get(key).decode() if store.check([key]) else ""
                if now != heard:
                    heard, since = now, time.monotonic()
                elif heard and heard != "done" and time.monotonic() - since > self.silence:
                    _, host, pid = heard.split()
                    store.set("gone", str(following))
                    self._say(f"rank {following} (process {pid} on {host}) is gone", store)
                    os._exit(1)
            store.set(f"alive/{self.rank}", "done")
        except (RuntimeError, dist.DistError):
            if not self._end.is_set():  # the store is gone, and with it the process or machine that kept it
                self._say("the process that the others met at is gone")
                os._exit(1)

    def _say(self, what: str, store: dist.Store | None = None) -> None:
        """Print the line unless another process has."""
        first = True
        with contextlib.suppress(RuntimeError, dist.DistError):
            first = (store or self._store).add("said", 1) == 1
        if first:
            print(f"{self.command}: error: {what}; {WHAT_NOW}", file=sys.stderr, flush=True)


def _broken(error: RuntimeError) -> bool:
    """Whether an error is a collective's whose other side is gone."""
    known = r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket"
    return isinstance(error, dist.DistError) or bool(re.search(known, str(error), re.IGNORECASE))
