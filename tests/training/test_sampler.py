"""The order of training samples: shared out without overlap, and the same from wherever it is started."""

import numpy as np
import pytest

from visionattn.training.errors import UserError
from visionattn.training.sampler import TrainingSampler


def epoch_of(world: int, accumulation: int, epoch: int = 0, seed: int = 3, length: int = 103) -> list[list[int]]:
    """Indices of every step of one epoch, over all ranks and micro steps."""
    steps = length // 24
    ranks = [
        list(TrainingSampler(length, 24, (epoch + 1) * steps, seed, epoch * steps, accumulation, rank, world))
        for rank in range(world)
    ]
    assert all(len(batches) == steps * accumulation for batches in ranks)
    return [
        [
            index
            for micro in range(accumulation)
            for batches in ranks
            for _, index, _ in batches[step * accumulation + micro]
        ]
        for step in range(steps)
    ]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 3), (4, 2), (3, 4)])
def test_ranks_and_micro_steps_share_the_same_steps_without_overlap(world: int, accumulation: int) -> None:
    steps = epoch_of(world, accumulation)
    assert steps == epoch_of(1, 1)
    seen = [index for step in steps for index in step]
    assert len(set(seen)) == len(seen) == 96 and max(seen) < 103


@pytest.mark.parametrize("start", [0, 1, 4, 5, 11, 12])
def test_any_start_yields_the_tail_of_the_whole_run(start: int) -> None:
    whole = list(TrainingSampler(40, 8, 12, seed=1, accumulation=2))
    sampler = TrainingSampler(40, 8, 12, seed=1, start=start, accumulation=2)
    assert list(sampler) == whole[2 * start :]
    assert len(sampler) == len(whole) - 2 * start


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order = TrainingSampler(50, 10, 100, seed=1).order
    assert np.array_equal(order(4), TrainingSampler(50, 5, 7, seed=1, start=3, rank=1, world=5).order(4))
    assert not np.array_equal(order(4), order(5))
    assert not np.array_equal(order(4), TrainingSampler(50, 10, 100, seed=2).order(4))
    assert np.array_equal(np.sort(order(4)), np.arange(50))


def test_keys_carry_the_epoch() -> None:
    batches = list(TrainingSampler(20, 10, 5, seed=0))
    assert [{epoch for epoch, _, _ in batch} for batch in batches] == [{0}, {0}, {1}, {1}, {2}]


@pytest.mark.parametrize(("batch", "accumulation", "world"), [(10, 3, 1), (10, 1, 4), (0, 1, 1), (8, 4, 4)])
def test_a_batch_that_cannot_be_shared_out_is_refused(batch: int, accumulation: int, world: int) -> None:
    with pytest.raises(UserError, match=f"optim.batch_size is {batch}; it must be a multiple"):
        TrainingSampler(100, batch, 1, 0, 0, accumulation, 0, world)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="optim.batch_size is 64, but the training set has only 63 images"):
        TrainingSampler(63, 64, 1, 0)


def test_repeated_samples_lie_side_by_side_and_are_told_apart() -> None:
    batches = list(TrainingSampler(20, 8, 4, seed=0, repeats=4))
    assert all([copy for _, _, copy in batch] == [0, 1, 2, 3] * 2 for batch in batches)
    taken = [[index for _, index, copy in batch if copy == 0] for batch in batches]
    assert all(index == taken[i][j // 4] for i, batch in enumerate(batches) for j, (_, index, _) in enumerate(batch))
    assert len({index for pair in taken[:2] for index in pair}) == 4  # of one epoch, all others
