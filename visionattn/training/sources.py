"""Where images come from: folders, tar files and Hugging Face datasets through timm's readers, and generated ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from timm.data import create_reader

from .config import DataConfig
from .errors import Unreadable, UserError, first_line
from .parallel import in_processes
from .shapes import Shapes
from .shards import Shards


class Images(Protocol):
    """A labelled set of pictures: ``[i]`` is a PIL image and its class, ``name(i)`` what a message calls it."""

    classes: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...
    def name(self, index: int) -> str: ...


def decode(file: Any, name: str) -> Image.Image:
    """The RGB picture in an open file.

    Raises:
        Unreadable: where it is damaged or no picture.
    """
    try:
        with file:
            image = Image.open(file)
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy an RGB image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's readers raise these
        raise Unreadable(f"cannot read image {name}: {error}") from None


class Files:
    """Pictures that one of timm's readers finds.

    Args:
        reader: a timm reader with random access.
        where: what messages call the place.
        cache: decode every image now and keep all of them in memory.
        skip: an image that cannot be read stays out of the cache instead of being an error.

    Raises:
        Unreadable: with ``cache`` and without ``skip``.
    """

    def __init__(self, reader: Any, where: str, cache: bool = False, skip: bool = False):
        self.reader, self.where = reader, where
        numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
        if not numbers:
            raise UserError(f"data.root: {where} does not say which classes there are")
        self.classes = [str(name) for name in sorted(numbers, key=numbers.get)]
        self._process = os.getpid()
        self.cached: list[tuple[Image.Image, int] | None] | None = None
        if cache:
            jobs = [(begin, min(begin + 1000, len(self)), skip) for begin in range(0, len(self), 1000)]
            self.cached = [item for part in in_processes(self._read_range, jobs) for item in part]

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if self._process != os.getpid():
            # timm's tar reader keeps its files open, and a forked process would share their position with its parent
            self._process = os.getpid()
            for state in _tar_states(self.reader):
                state.tf = None
        try:
            file, label = self.reader[index]
        except (OSError, ValueError, SyntaxError, AssertionError) as error:
            raise Unreadable(f"cannot read image {self.name(index)}: {error}") from None
        return decode(file, self.name(index)), int(label)

    def _read_range(self, begin: int, end: int, skip: bool) -> list[tuple[Image.Image, int] | None]:
        found: list[tuple[Image.Image, int] | None] = []
        for index in range(begin, end):
            try:
                image, label = self._read(index)
                found.append((image.copy(), label))  # without the file that it came from
            except Unreadable:
                if not skip:
                    raise
                found.append(None)
        return found

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        item = self.cached[index] if self.cached is not None else None
        return item or self._read(index)

    def name(self, index: int) -> str:
        name = self.reader.filename(index, absolute=True)
        return str(name) if name and os.path.isabs(str(name)) else f"{self.where}: {name or f'number {index}'}"


def _tar_states(reader: Any) -> list[Any]:
    """The open tar files of timm's tar reader, those inside other tar files too."""
    state = getattr(reader, "tar_state", None)
    if state is None:
        return []
    outer = list(state.values()) if isinstance(state, dict) else [state]
    return outer + [inner for one in outer for inner in one.children.values()]


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


def _folder(config: DataConfig, split: str) -> Files:
    folder = Path(config.root) / split
    if not folder.is_dir():
        raise UserError(f"data.root: {folder} is not a directory; expected ROOT/SPLIT/CLASS/image files")
    empty = [child for child in sorted(folder.iterdir()) if child.is_dir() and not any(child.iterdir())]
    if empty:
        raise UserError(f"data.root: the class folder {empty[0]} is empty")
    try:
        reader = create_reader("", str(folder))
    except RuntimeError:
        raise UserError(f"data.root: {folder} holds no images in class directories") from None
    return Files(reader, str(folder), config.cache, config.unreadable == "skip")


def _tar(config: DataConfig, split: str) -> Files:
    where = Path(config.root) / f"{split}.tar"
    if not where.is_file():
        raise UserError(f"data.root: {where} is not a file; expected ROOT/SPLIT.tar with CLASS/image files in it")
    try:
        reader = create_reader("", str(where))
    except Exception as error:  # timm's reader fails in as many ways as there are damaged files
        raise UserError(f"data.root: {where} cannot be read as a tar of CLASS/image files: {error}") from None
    return Files(reader, str(where), config.cache, config.unreadable == "skip")


def _hugging_face(config: DataConfig, split: str) -> Files:
    try:
        import datasets  # noqa: F401  timm prints instead of saying what is missing
    except ImportError:
        raise UserError("data.dataset is hfds, which needs the package datasets: pip install datasets") from None
    try:
        reader = create_reader(
            f"hfds/{config.root}", split=split, input_key=config.input_key or "image",
            target_key=config.target_key or "label")  # fmt: skip
    except Exception as error:  # the library's errors have no common base
        reason = first_line(error)
        raise UserError(f"data.root: the Hugging Face dataset {config.root}, split {split}: {reason}") from None
    return Files(reader, f"{config.root}/{split}", config.cache, config.unreadable == "skip")


READERS = {"folder": _folder, "tar": _tar, "hfds": _hugging_face}


def load_split(config: DataConfig, which: Literal["train", "val"]) -> Images | Shards:
    """The pictures of one split that the options name.

    Raises:
        UserError: where images are missing.
    """
    train = which == "train"
    if config.dataset == "shapes":
        length = config.shapes_train if train else config.shapes_val
        return Shapes(which, length, config.image_size, config.shapes_seed, None)
    if config.dataset == "noise":
        return Noise(config.noise_train if train else config.noise_train // 10, config.image_size)
    split = config.train_split if train else config.val_split
    if config.dataset == "wds":
        return Shards(config, split, config.train_samples if train else None)
    return READERS[config.dataset](config, split)


def load_images(config: DataConfig) -> tuple[Images | Shards, Images | Shards]:
    """The training and the validation pictures that the options name.

    Raises:
        UserError: where images are missing or the splits' classes differ.
    """
    train, val = load_split(config, "train"), load_split(config, "val")
    if train.classes != val.classes:
        missing = sorted(set(train.classes) ^ set(val.classes))[:5]
        raise UserError(f"data.root: the splits' classes differ, for example {', '.join(missing)}")
    if len(train.classes) < 2:
        raise UserError(f"data.root: there is only the class {train.classes[0]!r}; at least two are needed")
    return train, val
