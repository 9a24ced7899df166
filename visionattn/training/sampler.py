"""The order of the training samples, computable from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .errors import UserError
from .randomness import Purpose, seed_of


class TrainingSampler(Sampler):
    """Batches of keys ``(epoch, index, copy)`` for a whole run, starting at any step.

    Used as the ``batch_sampler`` of one DataLoader for the whole run: the key carries the epoch, so that workers
    need no restart and read ahead over the end of an epoch. The order of epoch e depends on ``(seed, e)`` alone; a
    step takes ``batch_size`` samples of it, shared out over micro steps and ranks without overlap; the samples left
    over at the end of an epoch are not used.

    Args:
        length: number of samples in the dataset.
        batch_size: samples in one optimiser step, over all ranks and micro steps.
        steps: optimiser steps of the whole run.
        seed: the run's seed.
        start: the first optimiser step to yield.
        accumulation: micro steps in one optimiser step.
        rank: this process among ``world``.
        world: number of processes.
        repeats: how often a sample comes in an epoch, each time (``copy`` 0, 1, ...) augmented anew, side by side; the
            epoch stays as long and takes fewer samples ("Augment your batch", arXiv 1901.09335).

    Raises:
        UserError: if the dataset is smaller than one batch, or ``batch_size`` is not divisible by
            ``accumulation * world``.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ):
        if batch_size < 1 or batch_size % (accumulation * world):
            raise UserError(
                f"optim.batch_size is {batch_size}; it must be a multiple of optim.accumulation x processes "
                f"= {accumulation} x {world}"
            )
        if length < batch_size:
            raise UserError(f"optim.batch_size is {batch_size}, but the training set has only {length} images")
        self.length, self.batch_size, self.steps, self.seed, self.start = length, batch_size, steps, seed, start
        self.accumulation, self.rank, self.world, self.repeats = accumulation, rank, world, repeats
        self.steps_per_epoch = length // batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of ``range(length)`` that epoch ``epoch`` follows, int64."""
        return np.random.default_rng(seed_of(Purpose.ORDER, self.seed, epoch)).permutation(self.length)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        share = self.batch_size // (self.accumulation * self.world)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = (step % self.steps_per_epoch) * self.batch_size
            for micro in range(self.accumulation):
                begin = first + (micro * self.world + self.rank) * share
                places = (divmod(place, self.repeats) for place in range(begin, begin + share))
                yield [(epoch, int(order[place]), copy) for place, copy in places]
