"""Batches of images whose randomness is stateless: what a step sees is a function of the step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from .config import TrainConfig
from .errors import Unreadable
from .randomness import Purpose, seed_host, seed_of
from .sampler import TrainingSampler
from .shards import MOST_IN_A_ROW, EvaluationStream, Shards, TrainingStream
from .sources import Images
from .transforms import eval_transform, train_transform

Batch = tuple[torch.Tensor, torch.Tensor, list[str]]
"""uint8 images [B, 3, H, W], classes [B] (-1: not to be counted), names of unreadable images or empty strings."""


def size_of_epoch(config: TrainConfig, epoch: int) -> int:
    """Height and width of the training images in an epoch: they may grow over the schedule."""
    sizes = config.data.progressive_sizes or [config.data.image_size]
    return sizes[min(epoch * len(sizes) // config.schedule.epochs, len(sizes) - 1)]


class Samples(Dataset):
    """Training pictures, augmented: the key ``(epoch, index, copy)`` alone decides what comes out.

    Yields (uint8 ``[3, size, size]``, class, name of an unreadable image whose place this one takes, or "").
    """

    def __init__(self, images: Images, config: TrainConfig):
        self.images, self.config = images, config
        self.transforms: dict[int, Callable] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, int, str]:
        epoch, index, copy = key
        image, label, unreadable = self._read(index)
        seed_host(seed_of(Purpose.SAMPLE, self.config.run.seed, epoch, index, copy))
        return self._transform(size_of_epoch(self.config, epoch))(image), label, unreadable

    def _transform(self, size: int) -> Callable:
        if size not in self.transforms:
            self.transforms[size] = train_transform(self.config.data, self.config.augment, size)
        return self.transforms[size]

    def _read(self, index: int) -> tuple[Any, int, str]:
        unreadable = ""
        for further in range(min(MOST_IN_A_ROW, len(self))):
            try:
                return *self.images[(index + further) % len(self)], unreadable
            except Unreadable as error:
                if self.config.data.unreadable == "stop":
                    raise
                unreadable, reason = unreadable or self.images.name(index), error
        raise Unreadable(f"{reason}, nor can the {further} images after it")


class Plain(Dataset):
    """Evaluation pictures: (uint8 ``[3, size, size]``, class, ""), or (zeros, -1, name) for an unreadable one."""

    def __init__(self, images: Images, config: TrainConfig):
        self.images, self.data, self.transform = images, config.data, eval_transform(config.data)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        try:
            image, label = self.images[index]
        except Unreadable:
            if self.data.unreadable == "stop":
                raise
            size = self.data.image_size
            return torch.zeros(3, size, size, dtype=torch.uint8), -1, self.images.name(index)
        return self.transform(image), label, ""


def train_batches(
    config: TrainConfig, images: Images | Shards, steps: int, start: int, rank: int, world: int, pin: bool
) -> Iterator[Batch]:
    """Micro batches of one process for all that is left of a run, from optimiser step ``start`` on."""
    parts = config.optim.accumulation
    share = config.optim.batch_size // (parts * world)
    if isinstance(images, Shards):
        per_epoch = len(images) // config.optim.batch_size * parts
        return _stream(config, images, per_epoch, steps * parts, start * parts, share, rank, world, pin)
    sampler = TrainingSampler(
        len(images), config.optim.batch_size, steps, config.run.seed, start, parts, rank, world,
        config.augment.repeats)  # fmt: skip
    return iter(loader(config.data.workers, Samples(images, config), pin, persistent=True, batch_sampler=sampler))


def _stream(config: TrainConfig, shards: Shards, per_epoch: int, end: int, start: int, share: int, rank: int,
            world: int, pin: bool) -> Iterator[Batch]:  # fmt: skip
    while start < end:
        epoch, skip = divmod(start, per_epoch)
        transform = train_transform(config.data, config.augment, size_of_epoch(config, epoch))
        batches = min(per_epoch, end - epoch * per_epoch)
        stream = TrainingStream(shards, transform, config.run.seed, epoch, share, batches, skip, rank, world)
        yield from loader(config.data.workers, stream, pin, persistent=False, batch_size=share)
        start = epoch * per_epoch + batches


def eval_loader(config: TrainConfig, images: Images | Shards, rank: int, world: int, pin: bool) -> DataLoader:
    """Every picture exactly once over all ranks."""
    if isinstance(images, Shards):
        dataset: Dataset = EvaluationStream(images, eval_transform(config.data), config.data.image_size, rank, world)
    else:
        share: Sequence[int] = range(rank, len(images), world)
        dataset = Subset(Plain(images, config), share)
    # Workers that outlived an evaluation would be waited for, 5 s each, when the process ends.
    return loader(config.data.workers, dataset, pin, persistent=False, batch_size=config.data.eval_batch_size)


def loader(workers: int, dataset: Dataset | IterableDataset, pin: bool, persistent: bool, **how: Any) -> DataLoader:
    """A DataLoader whose workers keep out of the way.

    Args:
        workers: processes that load; 0 loads in this one.
        dataset: what is loaded.
        pin: copy batches to pinned memory.
        persistent: keep the workers from one pass over the dataset to the next.
        how: further arguments of DataLoader.
    """
    more = dict(prefetch_factor=4, persistent_workers=persistent) if workers else {}
    return DataLoader(dataset, num_workers=workers, pin_memory=pin, worker_init_fn=_start_worker, **more, **how)


def _start_worker(worker: int) -> None:
    # A process group of its own: Ctrl-C goes to the main process alone, which finishes its step and needs its batches.
    os.setpgid(0, 0)
    torch.set_num_threads(1)
