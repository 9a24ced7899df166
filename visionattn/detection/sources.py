"""Where images with boxes and masks come from: COCO's format, and the generated set `shapes`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from visionattn.training.errors import UserError
from visionattn.training.parallel import in_processes
from visionattn.training.shapes import CLASSES, Scene, draw_scene

from .coco import Coco, Target
from .config import DetConfig


class Pictures(Protocol):
    """Pictures with what is on them: ``[i]`` is a PIL image and its :data:`.coco.Target`."""

    classes: list[str]
    category_ids: list[int]
    notes: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, Target]: ...
    def name(self, index: int) -> str: ...
    def aspects(self) -> np.ndarray: ...


def _draw(split: str, seed: int, size: int, begin: int, end: int) -> list[Scene]:
    return [
        draw_scene(index, split, seed, size, objects=(1, 4), object_scale=(0.15, 0.28)) for index in range(begin, end)
    ]


class ShapeScenes:
    """Generated pictures of one to four shapes, all drawn once and kept in memory.

    Args:
        split: 'train' or 'val'.
        length: number of pictures.
        size: height and width in pixels.
        seed: of the whole data set.
        masks: give masks too.
        processes: that draw; None takes one a core.
    """

    classes = list(CLASSES)
    category_ids = list(range(1, len(CLASSES) + 1))

    def __init__(self, split: str, length: int, size: int, seed: int, masks: bool, processes: int | None = None):
        jobs = [(split, seed, size, begin, min(begin + 200, length)) for begin in range(0, length, 200)]
        self.scenes = [scene for part in in_processes(_draw, jobs, processes) for scene in part]
        self.masks, self.notes = masks, []

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        scene = self.scenes[index]
        target = dict(
            boxes=torch.from_numpy(scene.boxes.copy()), labels=torch.from_numpy(scene.labels.copy()),
            area=torch.from_numpy(scene.masks.sum((1, 2)).astype(np.float32)),
            iscrowd=torch.zeros(len(scene.labels), dtype=torch.int64))  # fmt: skip
        if self.masks:
            target["masks"] = torch.from_numpy(scene.masks.astype(np.uint8))
        return Image.fromarray(scene.image), target

    def name(self, index: int) -> str:
        """What a message calls picture ``index``."""
        return f"shapes scene {index}"

    def aspects(self) -> np.ndarray:
        """Width over height of every picture, float64 ``[length]``."""
        return np.ones(len(self))


def load_pictures(config: DetConfig) -> tuple[Pictures, Pictures]:
    """The training and the validation pictures that the options name.

    Raises:
        UserError: where something is missing or damaged, or the splits' categories differ.
    """
    data, masks = config.data, config.model.detector == "maskrcnn"
    if data.dataset == "shapes":
        lengths = dict(train=data.shapes_train, val=data.shapes_val)
        return tuple(ShapeScenes(s, n, data.shapes_size, data.shapes_seed, masks) for s, n in lengths.items())
    root, skip = Path(data.root), data.unreadable == "skip"
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a directory")
    train = Coco(root / data.train_images, root / data.train_annotations, "train", masks, True, skip)
    val = Coco(root / data.val_images, root / data.val_annotations, "val", masks, False, skip)
    one, two = (dict(zip(split.category_ids, split.classes)) for split in (train, val))
    if one != two:
        wrong = sorted({*one.items()} ^ {*two.items()})[0]
        raise UserError(f"data.root: the splits' categories differ, for example in {wrong[0]} ({wrong[1]})")
    return train, val
