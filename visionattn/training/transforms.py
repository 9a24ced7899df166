"""From a PIL image to what the network sees: augmentation on the host, the rest on the network's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)  # fmt: skip
from timm.data.random_erasing import RandomErasing
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from .config import AugmentConfig, DataConfig
from .errors import UserError


def train_transform(data: DataConfig, augment: AugmentConfig, size: int | None = None) -> Callable:
    """PIL image -> augmented uint8 ``[3, size, size]``; :class:`ToInput` does the rest.

    Args:
        data: how images are resized.
        augment: what is done to them.
        size: another height and width than ``data.image_size``.

    Raises:
        UserError: for a policy that timm does not know.
    """
    size = size or data.image_size
    policy = _policy(augment.auto_augment, data, size) if augment.auto_augment else None
    if augment.crop == "resized":
        made = create_transform(
            size, is_training=True, scale=augment.scale, ratio=augment.ratio, hflip=augment.hflip, vflip=augment.vflip,
            color_jitter=augment.color_jitter or None, auto_augment=augment.auto_augment,
            interpolation=data.interpolation, mean=data.mean, std=data.std, normalize=False)  # fmt: skip
        for step in made.transforms:
            _mend_posterize(step)
        return made
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


def _policy(name: str, data: DataConfig, size: int) -> Callable:
    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = kinds.get(name.split("-")[0], auto_augment_transform)
    mean = tuple(min(255, round(255 * m)) for m in data.mean)
    try:
        policy = make(name, dict(translate_const=int(size * 0.45), img_mean=mean))
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"augment.auto_augment is {name!r}, which timm refuses: {error}") from None
    _mend_posterize(policy)
    return policy


def _mend_posterize(step: Any) -> None:
    """Let timm's policies keep 0 bits of a channel: it asks Pillow for that at full strength, which 13.0 refuses."""
    for entry in getattr(step, "policy", None) or getattr(step, "ops", ()):
        for op in entry if isinstance(entry, list) else [entry]:
            if getattr(op, "aug_fn", None) is posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def eval_transform(data: DataConfig) -> Callable:
    """PIL image -> its evaluation crop, uint8 ``[3, size, size]``."""
    mode = "bicubic" if data.interpolation == "random" else data.interpolation
    return create_transform(
        data.image_size, is_training=False, interpolation=mode, crop_pct=data.crop_pct, crop_mode=data.crop_mode,
        normalize=False)  # fmt: skip


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
