"""Images on their way to the network: datasets, transforms, and loaders whose randomness is stateless."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_transform
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from .config import AugmentConfig, DataConfig, TrainConfig
from .errors import UserError
from .parallel import in_processes
from .randomness import Purpose, seed_host, seed_of
from .sampler import TrainingSampler
from .shapes import Shapes


class Images(Protocol):
    """A labelled set of pictures: ``[i]`` is a PIL image and its class, ``name(i)`` what a message calls it."""

    classes: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...
    def name(self, index: int) -> str: ...


class Folder:
    """ROOT/SPLIT/CLASS/image files, read by timm's reader.

    Args:
        root: the directory that holds the splits.
        split: name of the split's directory.
        cache: decode every image now and keep all of them in memory.

    Raises:
        UserError: where the directory or its images are missing.
    """

    def __init__(self, root: str, split: str, cache: bool = False):
        folder = Path(root) / split
        if not folder.is_dir():
            raise UserError(f"data.root: {folder} is not a directory; expected ROOT/SPLIT/CLASS/image files")
        try:
            self.files = ImageDataset(str(folder))
        except RuntimeError:
            raise UserError(f"data.root: {folder} holds no images in class directories") from None
        numbers = self.files.reader.class_to_idx
        self.classes = sorted(numbers, key=numbers.get)
        self.cached = None
        if cache:
            jobs = [(begin, min(begin + 1000, len(self))) for begin in range(0, len(self), 1000)]
            self.cached = [item for part in in_processes(self._read_range, jobs) for item in part]

    def _read(self, index: int) -> tuple[Image.Image, int]:
        # Not self.files[index], which puts the next image in the place of one that cannot be read.
        try:
            file, label = self.files.reader[index]
            with file, Image.open(file) as image:
                return image.convert("RGB"), label
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's readers raise all three
            raise UserError(f"cannot read image {self.name(index)}: {error}") from None

    def _read_range(self, begin: int, end: int) -> list[tuple[Image.Image, int]]:
        return [self._read(i) for i in range(begin, end)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.cached[index] if self.cached is not None else self._read(index)

    def name(self, index: int) -> str:
        return self.files.filename(index, absolute=True)


class Noise:
    """Random pixels of the network's input size; the pictures repeat after some, as memory does not matter here."""

    def __init__(self, count: int, size: int):
        pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
        self.pictures = [Image.fromarray(x) for x in pixels]
        self.count, self.classes = count, [f"class {i}" for i in range(1000)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.pictures[index % len(self.pictures)], index % len(self.classes)

    def name(self, index: int) -> str:
        return f"noise {index}"


def load_images(config: DataConfig) -> tuple[Images, Images]:
    """The training and the validation pictures that the options name.

    Raises:
        UserError: where images are missing or the splits' classes differ.
    """
    if config.dataset == "shapes":
        lengths = {"train": config.shapes_train, "val": config.shapes_val}
        return tuple(Shapes(s, n, config.image_size, config.shapes_seed, None) for s, n in lengths.items())
    if config.dataset == "noise":
        return tuple(Noise(count, config.image_size) for count in (config.noise_train, config.noise_train // 10))
    train, val = (Folder(config.root, split, config.cache) for split in (config.train_split, config.val_split))
    if train.classes != val.classes:
        missing = sorted(set(train.classes) ^ set(val.classes))[:5]
        raise UserError(f"data.root: the splits' classes differ, for example {', '.join(missing)}")
    if len(train.classes) < 2:
        raise UserError(f"data.root: there is only the class {train.classes[0]!r}; at least two are needed")
    return train, val


class Samples(Dataset):
    """Training pictures, augmented: the key ``(epoch, index)`` alone decides what comes out.

    Yields (uint8 ``[3, size, size]``, class).
    """

    def __init__(self, images: Images, transform: Callable, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        image, label = self.images[index]
        seed_host(seed_of(Purpose.SAMPLE, self.seed, epoch, index))
        return self.transform(image), label


class Plain(Dataset):
    """Evaluation pictures: (uint8 ``[3, size, size]``, class)."""

    def __init__(self, images: Images, transform: Callable):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


def train_transform(data: DataConfig, augment: AugmentConfig) -> Callable:
    """PIL image -> augmented uint8 ``[3, size, size]``; :class:`ToInput` does the rest.

    Raises:
        UserError: for a policy that timm does not know.
    """
    size = data.image_size
    policy = _policy(augment.auto_augment, data) if augment.auto_augment else None
    if augment.crop == "resized":
        return create_transform(
            size, is_training=True, scale=augment.scale, ratio=augment.ratio, hflip=augment.hflip, vflip=augment.vflip,
            color_jitter=augment.color_jitter or None, auto_augment=augment.auto_augment,
            interpolation=data.interpolation, mean=data.mean, std=data.std, normalize=False)  # fmt: skip
    steps: list[Any] = [_ToSize(size, data.interpolation)]
    if augment.crop == "padded":
        steps.append(transforms.RandomCrop(size, padding=augment.padding))
    if augment.hflip:
        steps.append(transforms.RandomHorizontalFlip(augment.hflip))
    if augment.vflip:
        steps.append(transforms.RandomVerticalFlip(augment.vflip))
    if policy is not None:
        steps.append(policy)
    elif augment.color_jitter:
        steps.append(transforms.ColorJitter(*[augment.color_jitter] * 3))
    return transforms.Compose([*steps, transforms.PILToTensor()])


def _policy(name: str, data: DataConfig) -> Callable:
    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = kinds.get(name.split("-")[0], auto_augment_transform)
    mean = tuple(min(255, round(255 * m)) for m in data.mean)
    try:
        return make(name, dict(translate_const=int(data.image_size * 0.45), img_mean=mean))
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"augment.auto_augment is {name!r}, which timm refuses: {error}") from None


def eval_transform(data: DataConfig) -> Callable:
    """PIL image -> its centre, uint8 ``[3, size, size]``."""
    mode = "bicubic" if data.interpolation == "random" else data.interpolation
    return create_transform(
        data.image_size, is_training=False, interpolation=mode, crop_pct=data.crop_pct, normalize=False
    )


class ToInput:
    """uint8 ``[B, 3, H, W]`` -> normalised float32, and in training random erasing, on the network's device.

    There they cost next to nothing, and a batch travels from process to process to device as bytes.

    Args:
        data: mean and standard deviation.
        device: where batches are.
        augment: what is erased; None in evaluation.
    """

    def __init__(self, data: DataConfig, device: torch.device, augment: AugmentConfig | None = None):
        self.mean, self.std = (255 * torch.tensor(x, device=device)[:, None, None] for x in (data.mean, data.std))
        self.erase = None
        if augment is not None and augment.erase:
            self.erase = RandomErasing(augment.erase, mode=augment.erase_mode, device=device.type)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = (images - self.mean) / self.std
        return images if self.erase is None else self.erase(images)


class _ToSize:
    """Resizes and crops the centre where the picture does not have the size already."""

    def __init__(self, size: int, interpolation: str):
        mode = InterpolationMode.BILINEAR if interpolation == "bilinear" else InterpolationMode.BICUBIC
        self.size, self.fit = size, transforms.Compose([transforms.Resize(size, mode), transforms.CenterCrop(size)])

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == (self.size, self.size) else self.fit(image)


def train_loader(
    config: TrainConfig, images: Images, steps: int, start: int, rank: int, world: int, pin: bool
) -> DataLoader:
    """One loader for all that is left of a run, from optimiser step ``start`` on."""
    sampler = TrainingSampler(
        len(images), config.optim.batch_size, steps, config.run.seed, start, config.optim.accumulation,
        rank, world)  # fmt: skip
    samples = Samples(images, train_transform(config.data, config.augment), config.run.seed)
    return _loader(config, samples, pin, persistent=True, batch_sampler=sampler)


def eval_loader(config: TrainConfig, images: Images, rank: int, world: int, pin: bool) -> DataLoader:
    """Every picture exactly once over all ranks."""
    share: Sequence[int] = range(rank, len(images), world)
    # Workers that outlived an evaluation would be waited for, 5 s each, when the process ends.
    return _loader(config, Subset(Plain(images, eval_transform(config.data)), share), pin, persistent=False,
                   batch_size=config.data.eval_batch_size)  # fmt: skip


def _loader(config: TrainConfig, dataset: Dataset, pin: bool, persistent: bool, **how: Any) -> DataLoader:
    workers = config.data.workers
    more = dict(prefetch_factor=4, persistent_workers=persistent) if workers else {}
    return DataLoader(dataset, num_workers=workers, pin_memory=pin, worker_init_fn=_start_worker, **more, **how)


def _start_worker(worker: int) -> None:
    # A process group of its own: Ctrl-C goes to the main process alone, which finishes its step and needs its batches.
    os.setpgid(0, 0)
    torch.set_num_threads(1)
