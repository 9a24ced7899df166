"""Batches of images with boxes: what a step sees is a function of the step, as for every task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from visionattn.training.data import Samples, loader
from visionattn.training.errors import Unreadable
from visionattn.training.randomness import Purpose, seed_host, seed_of
from visionattn.training.sampler import TrainingSampler

from .coco import Target
from .config import DetConfig
from .sources import Pictures

Batch = tuple[list[torch.Tensor], list[Target], list[str]]
"""uint8 images [3, H, W], what is on each, names of unreadable images or empty strings."""


class AspectSampler(TrainingSampler):
    """The order of training, in which the images of a step all lie or all stand.

    Args:
        aspects: width over height of every image.
        more: of :class:`TrainingSampler`.
    """

    def __init__(self, aspects: np.ndarray, **more: int):
        super().__init__(len(aspects), **more)
        self.lying = np.asarray(aspects) >= 1

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation, its batches formed as its images come; those left over mix at the end."""
        waiting: dict[bool, list[int]] = {True: [], False: []}
        order: list[int] = []
        for index in super().order(epoch).tolist():
            group = waiting[bool(self.lying[index])]
            group.append(index)
            if len(group) == self.batch_size:
                order += group
                group.clear()
        return np.array(order + waiting[True] + waiting[False], dtype=np.int64)


def train_transform(config: DetConfig) -> v2.Compose:
    """(image, target) of tv_tensors -> the same augmented; draws from the CPU's generators."""
    augment, data = config.augment, config.data
    steps: list[torch.nn.Module] = []
    if augment.resize == "jitter":
        steps.append(v2.ScaleJitter((augment.crop, augment.crop), augment.jitter))
        steps.append(v2.RandomCrop(augment.crop, pad_if_needed=True, fill={tv_tensors.Image: 114, "others": 0}))
    else:
        steps.append(v2.RandomShortestSize(augment.short_sides or [data.short_side], data.long_side))
    steps += [v2.RandomHorizontalFlip(augment.hflip), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1)]
    return v2.Compose(steps)


class DetSamples(Samples):
    """Training pictures, augmented: the key ``(epoch, index, copy)`` alone decides what comes out.

    Yields (uint8 ``[3, H, W]``, target without crowds, name of an unreadable image whose place this one takes, or "").
    """

    def __init__(self, images: Pictures, config: DetConfig):
        super().__init__(images, config)
        self.transform = train_transform(config)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, Target, str]:
        epoch, index, copy = key
        image, target, unreadable = self._read(index)
        height, width = image.height, image.width
        single = target["iscrowd"] == 0
        wrapped = dict(
            boxes=tv_tensors.BoundingBoxes(target["boxes"][single], format="XYXY", canvas_size=(height, width)),
            labels=target["labels"][single])  # fmt: skip
        if "masks" in target:
            wrapped["masks"] = tv_tensors.Mask(target["masks"][single])
        seed_host(seed_of(Purpose.SAMPLE, self.config.run.seed, epoch, index, copy))
        picture, changed = self.transform(tv_tensors.Image(v2.functional.pil_to_tensor(image)), wrapped)
        plain = {name: value.as_subclass(torch.Tensor) for name, value in changed.items()}
        return picture.as_subclass(torch.Tensor), plain, unreadable


class DetPlain(Dataset):
    """Evaluation pictures as they are: (uint8 ``[3, H, W]``, target, ""), or (``[3, 0, 0]``, {}, name) of a bad one."""

    def __init__(self, images: Pictures, config: DetConfig):
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target, str]:
        try:
            image, target = self.images[index]
        except Unreadable:
            if self.config.data.unreadable == "stop":
                raise
            return torch.zeros(3, 0, 0, dtype=torch.uint8), {}, self.images.name(index)
        return v2.functional.pil_to_tensor(image), target, ""


def collate(samples: list[tuple[torch.Tensor, Target, str]]) -> Batch:
    """Images of a batch keep their sizes."""
    images, targets, names = zip(*samples)
    return list(images), list(targets), list(names)


def train_batches(
    config: DetConfig, images: Pictures, steps: int, start: int, rank: int, world: int, pin: bool
) -> Iterator[Batch]:
    """Micro batches of one process for all that is left of a run, from optimiser step ``start`` on."""
    how = dict(batch_size=config.optim.batch_size, steps=steps, seed=config.run.seed, start=start,
               accumulation=config.optim.accumulation, rank=rank, world=world)  # fmt: skip
    grouped = config.data.group_aspect and config.augment.resize != "jitter"
    sampler = AspectSampler(images.aspects(), **how) if grouped else TrainingSampler(len(images), **how)
    samples = DetSamples(images, config)
    return iter(loader(config.data.workers, samples, pin, True, batch_sampler=sampler, collate_fn=collate))


def eval_loader(config: DetConfig, images: Pictures, rank: int, world: int, pin: bool) -> DataLoader:
    """Every picture exactly once over all ranks."""
    share = Subset(DetPlain(images, config), range(rank, len(images), world))
    batch = config.data.eval_batch_size
    return loader(config.data.workers, share, pin, False, batch_size=batch, collate_fn=collate)
