"""Lost processes: the next one notices, one line is said by all together, and all end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from visionattn.training.watch import Lost, Watch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys, time
from visionattn.training.watch import Watch
with Watch(int(sys.argv[1]), int(sys.argv[3]), silence=3):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""
COUNTS = [2, pytest.param(3, marks=pytest.mark.slow)]


def start(ranks: range, seconds: float, port: int, world: int) -> list[subprocess.Popen]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(seconds), str(world)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in ranks
    ]  # fmt: skip


@pytest.mark.parametrize("world", COUNTS)
def test_a_killed_process_is_named_once_and_the_others_end(world: int) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start(range(world), 60, store.port, world)
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    time.sleep(2.5)  # each has been heard from
    processes[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    errors = [process.communicate(timeout=50)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL, 1][:world]
    assert time.monotonic() - begun < 30
    lines = [line for error in errors for line in error.splitlines() if "visionattn" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"visionattn: error: rank 1 (process {processes[1].pid} on ")
    assert lines[0].endswith("the last checkpoint is kept: start again with --resume auto")


@pytest.mark.slow
def test_a_process_that_ends_well_is_not_missed() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start(range(2), 12, store.port, 3) + start(range(2, 3), 1, store.port, 3)
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0] and not any("visionattn" in x for x in errors)


def test_a_broken_collective_is_told_from_other_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    with pytest.raises(Lost):
        with Watch(0, 2):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "lost the connection to another process of the run" in err
    with pytest.raises(RuntimeError, match="shape"):
        with Watch(0, 2):
            raise RuntimeError("the shape is wrong")
    assert not capsys.readouterr().err


def test_one_process_is_not_watched() -> None:
    with Watch(0, 1) as watch:
        assert watch._thread is None
