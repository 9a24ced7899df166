"""Work spread over processes: the order of its results, and its errors."""

import os

import pytest

from visionattn.training.errors import UserError
from visionattn.training.parallel import in_processes


def place(a: int, b: int) -> tuple[int, int]:
    if b == 99:
        raise UserError("the last one is bad")
    return a * b, os.getpid()


@pytest.mark.parametrize("processes", [1, 2, None])
def test_results_keep_the_order_of_the_jobs(processes: int | None) -> None:
    assert [x for x, _ in in_processes(place, [(i, 2) for i in range(9)], processes)] == list(range(0, 18, 2))
    assert in_processes(place, [], processes) == []


def test_several_processes_work() -> None:
    assert os.getpid() not in {pid for _, pid in in_processes(place, [(1, 1)] * 4, 2)}


def test_an_error_in_a_process_is_the_callers() -> None:
    with pytest.raises(UserError, match="the last one is bad"):
        in_processes(place, [(1, 1), (1, 99)], 2)
