"""Processes beside each other: what is timed is alone, what dies is noted, what the user got wrong is said."""

import importlib
import sys

import pytest

from visionattn.benchmark import side_by_side
from visionattn.training.errors import UserError

# In a module of its own, which other processes can import: compiles for a while, then times, and says when.
MEASURED = """
import os
import time

from visionattn.training.errors import UserError


def measure(name, seconds, turns):
    if name == "dies":
        os._exit(3)
    if name == "wrong":
        raise UserError("no such model")
    with turns.searching():
        searched = time.time()
        time.sleep(0.2)
        searched = searched, time.time()
    time.sleep(seconds)
    compiled = time.time()
    with turns.timing():
        timed = time.time()
        if name == "dies while timed":
            os._exit(3)
        time.sleep(0.2)
        timed = timed, time.time()
    return dict(searched=searched, compiled=compiled, timed=timed)
"""


@pytest.fixture
def measure(tmp_path, monkeypatch):
    (tmp_path / "measured.py").write_text(MEASURED)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("measured").measure
    monkeypatch.delitem(sys.modules, "measured")


def test_all_compile_before_any_is_timed_and_turns_do_not_overlap(measure):
    jobs = [("a", 0.0), ("b", 1.0)]
    found = dict(side_by_side.run(measure, jobs, 2))
    assert list(found) == jobs
    compiled = [one["compiled"] for one in found.values()]
    for part in ("searched", "timed"):
        spans = sorted(one[part] for one in found.values())
        assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:]))
    assert min(one["timed"][0] for one in found.values()) >= max(compiled)


def test_processes_that_die_are_noted_and_the_others_go_on(measure):
    jobs = [("dies while timed", 0.0), ("a", 0.0), ("dies", 0.0)]
    found = [one for _, one in side_by_side.run(measure, jobs, 2)]
    assert found[0] == found[2] == dict(note="its process died") and "timed" in found[1]


def test_a_mistake_ends_the_run(measure):
    with pytest.raises(UserError, match="no such model"):
        list(side_by_side.run(measure, [("wrong", 0.0)], 2))
