"""Data sets of scenes: pictures with a class for every pixel, from folders or generated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from visionattn.training.errors import Unreadable, UserError, first_line
from visionattn.training.parallel import in_processes
from visionattn.training.randomness import Purpose, seed_host, seed_of
from visionattn.training.shapes import CLASSES, SPLITS, draw_scene

IGNORED = 255  # what mmsegmentation's losses, padding and metrics leave out
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Scenes(BaseSegDataset):
    """What all data sets here share: :meth:`read` gives a picture and its mask, which then go through the pipeline.

    Pictures are read here and not by a transform, so that a pipeline begins with a picture, and a mistake in the data
    is told with the file's name.

    A pipeline gets ``img`` (uint8 [H, W, 3], BGR as in OpenCV) and ``gt_seg_map`` (uint8 [H, W], 255 is ignored). In
    ``test_mode`` transforms leave the mask alone, so that predictions are compared at the size of the original.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a picture, with at least ``img_path``, its name."""
        raise NotImplementedError

    def read(self, info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 RGB [H, W, 3], uint8 classes [H, W]) of an entry."""
        raise NotImplementedError

    def __getitem__(self, key: int | tuple[int, ...]) -> Any:
        """A picture by its number, or by ``(seed, epoch, number, copy)``, which alone decides on its augmentation."""
        if isinstance(key, tuple):
            seed_host(seed_of(Purpose.SAMPLE, *key))
            key = key[2]
        return super().__getitem__(key)

    def prepare_data(self, idx: int) -> Any:
        """Picture number ``idx``, through the pipeline."""
        info = self.get_data_info(idx)
        image, mask = self.read(info)
        info.update(
            img=np.ascontiguousarray(image[..., ::-1]),
            img_shape=image.shape[:2],
            ori_shape=image.shape[:2],
            gt_seg_map=mask,
            seg_fields=[] if self.test_mode else ["gt_seg_map"],
            reduce_zero_label=False,
        )
        return self.pipeline(info)


@DATASETS.register_module()
class SceneFolder(Scenes):
    """Pictures in one folder and masks of the same names in another (PNG; one channel, or a palette).

    Args:
        data_root: folder that the others are relative to.
        images, masks: folders of pictures and masks, subfolders too.
        classes: names of the classes; a class's index is its value in a mask.
        ignored: values in masks that count for nothing, besides 255.
        offset: taken from every value that is not ignored: 1 where classes are counted from 1 (ADE20K).
        palette: RGB of each class for pictures; drawn at random if None.
        pipeline, test_mode, indices: as of mmsegmentation's data sets.

    Raises:
        UserError: where a folder, a picture or a mask is missing; while reading, where one is damaged, they differ in
            size, or a mask has a value that is no class. Each names the file.
    """

    def __init__(
        self,
        data_root: str,
        images: str,
        masks: str,
        classes: Sequence[str] | None = None,
        ignored: Sequence[int] = (),
        offset: int = 0,
        palette: Sequence[Sequence[int]] | None = None,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
    ) -> None:
        own = {"classes": classes, "palette": palette}
        if (classes or self.METAINFO.get("classes")) is None:
            raise UserError("SceneFolder needs classes, the names of the classes in order")
        self.image_folder, self.mask_folder = Path(data_root) / images, Path(data_root) / masks
        self.ignored, self.offset = {*ignored, IGNORED}, offset
        super().__init__(
            metainfo={key: value for key, value in own.items() if value is not None},
            data_prefix={},
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )
        count = len(self.metainfo["classes"])
        self.value_of = np.full(256, -1)
        self.value_of[offset : offset + count] = range(count)
        self.value_of[list(self.ignored)] = IGNORED

    def load_data_list(self) -> list[dict[str, Any]]:
        """Every picture with its mask, in the order of their names."""
        images, masks = _files(self.image_folder, "image"), _files(self.mask_folder, "mask")
        for names, others, folder, kind in (
            (images, masks, self.mask_folder, "mask"),
            (masks, images, self.image_folder, "image"),
        ):
            lacking = sorted(names.keys() - others.keys())
            if lacking:
                more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
                raise UserError(f"{names[lacking[0]]} has no {kind} {lacking[0]}.* in {folder}{more}")
        return [dict(img_path=str(images[name]), seg_map_path=str(masks[name])) for name in sorted(images)]

    def read(self, info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 RGB [H, W, 3], uint8 classes [H, W]) of an entry."""
        image = _load(info["img_path"], "image", "RGB")
        raw = _load(info["seg_map_path"], "mask", None)
        if raw.ndim != 2 or raw.dtype != np.uint8:
            kind = f"{raw.dtype} {list(raw.shape)}"
            raise UserError(f"mask {info['seg_map_path']} must have one 8-bit channel or a palette, but is {kind}")
        if raw.shape != image.shape[:2]:
            raise UserError(
                f"mask {info['seg_map_path']} is {raw.shape[1]}x{raw.shape[0]}, "
                f"but its image is {image.shape[1]}x{image.shape[0]}"
            )
        mask = self.value_of[raw]
        if (mask < 0).any():
            value, (row, column) = int(raw[mask < 0][0]), np.argwhere(mask < 0)[0]
            count = len(self.metainfo["classes"])
            raise UserError(
                f"mask {info['seg_map_path']} has the value {value} at row {row}, column {column}, which is no class; "
                f"allowed are {self.offset} to {self.offset + count - 1}, and {sorted(self.ignored)} for ignored pixels"
            )
        return image, mask.astype(np.uint8)


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Pictures in a folder and below, by their path without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {kind}s are expected there (data_root says where)")
    found = {
        str(path.relative_to(folder).with_suffix("")): path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
    }
    if not found:
        raise UserError(f"{folder} holds no {kind}s")
    return found


def _load(path: str, kind: str, mode: str | None) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about metadata
            with Image.open(path) as picture:
                return np.asarray(picture if mode is None else picture.convert(mode))
    except Exception as error:  # Pillow's formats have errors of their own
        reason = first_line(error)
        raise Unreadable(f"cannot read {kind} {path}: {reason}") from None


@DATASETS.register_module()
class CamVid(SceneFolder):
    """CamVid's street scenes with the 11 classes of SegNet's authors: ``images/SPLIT``, ``masks/SPLIT``, 11 is void."""

    METAINFO = dict(
        classes=(
            *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian"),
            "bicyclist",
        ),
        palette=[
            *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0]),
            *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
        ],
    )

    def __init__(self, data_root: str, split: str, **kwargs: Any) -> None:
        super().__init__(data_root, f"images/{split}", f"masks/{split}", ignored=(11,), **kwargs)


@DATASETS.register_module()
class ADE20K(SceneFolder):
    """ADE20K's 150 classes as the scene parsing challenge ships them: ``images/SPLIT``, ``annotations/SPLIT``."""

    METAINFO = ADE20KDataset.METAINFO

    def __init__(self, data_root: str, split: str, **kwargs: Any) -> None:
        folders = f"images/{split}", f"annotations/{split}"
        super().__init__(data_root, *folders, ignored=(0,), offset=1, **kwargs)  # 0 is "other", which nobody counts


@DATASETS.register_module()
class ShapesScenes(Scenes):
    """The generated data set `shapes` as scenes: several objects a picture, and a background as class 0.

    Args:
        split: "train", "val" or "test".
        length: number of pictures, which are drawn once and kept in memory.
        size: height and width in pixels, or one number for both.
        objects: range of the number of objects, both ends included.
        object_scale: range of an object's circumradius, as a part of the picture's short side.
        seed: of the whole data set.
        processes: that draw; None takes one a core.
        pipeline, test_mode: as of mmsegmentation's data sets.

    Raises:
        UserError: for an unknown split.
    """

    METAINFO = dict(
        classes=("background", *CLASSES),
        palette=[
            *([40, 40, 40], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]),
            *([145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]),
        ],
    )

    def __init__(
        self,
        split: str,
        length: int,
        size: int | tuple[int, int] = 40,
        objects: tuple[int, int] = (1, 2),
        object_scale: tuple[float, float] = (0.3, 0.44),
        seed: int = 0,
        processes: int | None = None,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        size = size if isinstance(size, int) else tuple(size)
        how = (split, seed, size, tuple(objects), tuple(object_scale))
        parts = [(*how, begin, min(begin + 200, length)) for begin in range(0, length, 200)]
        self.split, self.length = split, length
        self.drawn = [scene for part in in_processes(_draw, parts, processes) for scene in part]
        super().__init__(data_prefix={}, pipeline=list(pipeline), test_mode=test_mode)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a picture."""
        return [dict(img_path=f"{self.split}_{i:05d}.png", number=i) for i in range(self.length)]

    def read(self, info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 RGB [H, W, 3], uint8 classes [H, W]) of an entry."""
        return self.drawn[info["number"]]


def _draw(
    split: str,
    seed: int,
    size: int | tuple[int, int],
    objects: tuple[int, int],
    scale: tuple[float, float],
    begin: int,
    end: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for index in range(begin, end):
        scene = draw_scene(index, split, seed, size, objects, scale)
        mask = np.zeros(scene.image.shape[:2], np.uint8)
        for label, visible in zip(scene.labels, scene.masks):
            mask[visible] = label + 1
        found.append((scene.image, mask))
    return found


def classes_of(dataset: BaseDataset) -> list[str]:
    """Names of a data set's classes."""
    return list(dataset.metainfo["classes"])
