"""The data path: images a second from JPEG files to augmented batches, ours beside timm's own loader."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader

from visionattn.training import data, sources
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError

from .records import Records

ROUNDS = 5
POLICY = "rand-m7-mstd0.5-inc1"  # at 9, timm asks Pillow 13 for posterizing to 0 bits, which raises


def _config(root: Path, workers: int, batch: int, size: int) -> TrainConfig:
    config = TrainConfig()
    config.data.dataset, config.data.root, config.data.image_size = "folder", str(root), size
    config.data.workers, config.data.interpolation = workers, "random"
    config.augment.crop, config.augment.auto_augment = "resized", POLICY
    config.optim.batch_size = batch
    return config


def _ours(root: Path, workers: int, batch: int, size: int, batches: int) -> Iterator[int]:
    config = _config(root, workers, batch, size)
    images = sources.READERS["folder"](config.data, config.data.train_split)
    if len(images) < batch:
        raise UserError(f"--batch is {batch}, but {root}/{config.data.train_split} has only {len(images)} images")
    for found in data.train_batches(config, images, batches, 0, 0, 1, False):
        yield len(found[0])


def _timms(root: Path, workers: int, batch: int, size: int, batches: int) -> Iterator[int]:
    dataset = create_dataset("", str(root), split="train", is_training=True)
    augment = _config(root, workers, batch, size).augment
    loader = create_loader(
        dataset, (3, size, size), batch, is_training=True, scale=augment.scale, ratio=augment.ratio,
        hflip=augment.hflip, auto_augment=POLICY, interpolation="random", num_workers=workers, use_prefetcher=True,
        pin_memory=False, device=torch.device("cpu"), persistent_workers=workers > 0)  # fmt: skip
    given = 0
    while True:
        for images, _ in loader:
            yield len(images)
            given += 1
            if given == batches:
                return


def _rate(batches: Iterator[int]) -> float:
    next(batches)  # starts the workers
    begun = time.perf_counter()
    count = sum(batches)
    return count / (time.perf_counter() - begun)


def run(
    root: Path, workers: int, batch: int, size: int, batches: int, kept: Records, origin: dict[str, str],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measures both in turns and keeps the median of several rounds.

    Args:
        root: an image folder with the split ``train``.
        workers: processes that load; 0 for the calling one.
        batch: images in a batch.
        size: height and width of the network's input.
        batches: batches in a round, of which the first is not timed.
        kept: where the results go.
        origin: what they were measured with.
        say: takes lines for the user.

    Raises:
        UserError: where there are no images, or too few.
    """
    rates: dict[str, list[float]] = {"ours": [], "timm": []}
    for _ in range(ROUNDS):
        for name, make in (("ours", _ours), ("timm", _timms)):
            rates[name].append(_rate(make(root, workers, batch, size, batches)))
            say(f"{name}: {rates[name][-1]:.1f} images/s")
    for name, found in rates.items():
        low, middle, high = (sorted(found)[i] for i in (1, len(found) // 2, -2))
        kept.add(implementation=name, workers=workers, batch=batch, size=size, augment=POLICY, images_per_s=middle,
                 images_per_s_core=middle / max(workers, 1), p20=low, p80=high, **origin)  # fmt: skip
    kept.write()
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["timm"])
    say(f"ours / timm: {ratio:.3f}")
