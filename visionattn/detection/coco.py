"""Images annotated in COCO's own json (Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from visionattn.training.errors import Unreadable, UserError, first_line
from visionattn.training.sources import decode

Target = dict[str, torch.Tensor]
"""boxes float32 [n, 4] as x1, y1, x2, y2; labels int64 [n] from 0; area float32 [n]; iscrowd int64 [n]; masks uint8
[n, H, W] where they are asked for."""


@dataclass
class _Picture:
    file: str
    width: int
    height: int
    image_id: int
    objects: list[dict[str, Any]] = field(default_factory=list)


class Coco:
    """One split: ``[i]`` is a picture and what is on it.

    Objects outside their image or of zero area are left out and images without objects are kept; ``notes`` says how
    many of each there are.

    Args:
        folder: the directory of the images.
        annotations: the json file.
        split: what messages call it.
        masks: decode masks too.
        cut: cut boxes to their image, as training needs; evaluation compares with boxes as they are.
        skip: leave missing images out instead of refusing them.

    Raises:
        UserError: for missing folders, files or images, and for what is not COCO's json.
    """

    def __init__(self, folder: Path, annotations: Path, split: str, masks: bool, cut: bool, skip: bool):
        self.folder, self.masks, self.notes = folder, masks, []
        content = _read(annotations)
        try:
            categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
            pictures = {
                int(x["id"]): _Picture(str(x["file_name"]), int(x["width"]), int(x["height"]), int(x["id"]))
                for x in content["images"]
            }
            self.category_ids = [number for number, _ in categories]
            self.classes = [name for _, name in categories]
            self._sort_in(content["annotations"], pictures, annotations, split, cut)
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
            raise UserError(f"data.root: {annotations} is not in COCO's format: {what}") from None
        if not categories or not pictures:
            raise UserError(f"data.root: {annotations} lists no {'images' if categories else 'categories'}")
        if not folder.is_dir():
            raise UserError(f"data.root: {folder} is not a directory")
        self.pictures = self._present(list(pictures.values()), annotations, split, skip)
        empty = sum(not picture.objects for picture in self.pictures)
        if empty:
            self.notes.append(f"{split}: {empty} of {len(self.pictures)} images have no objects; kept as negatives")

    def _sort_in(
        self, entries: list[dict[str, Any]], pictures: dict[int, _Picture], file: Path, split: str, cut: bool
    ) -> None:
        number = {category: i for i, category in enumerate(self.category_ids)}
        dropped, trimmed, strangers = [], [], []
        for entry in entries:
            picture, x = pictures.get(int(entry["image_id"])), [float(value) for value in entry["bbox"]]
            if picture is None:
                strangers.append(entry)
                continue
            if int(entry["category_id"]) not in number:
                raise UserError(f"data.root: {file}: annotation {entry.get('id')} is of category_id "
                                f"{entry['category_id']}, which its categories do not list")  # fmt: skip
            box = np.array([x[0], x[1], x[0] + x[2], x[1] + x[3]])
            inside = box.clip(0, [picture.width, picture.height] * 2)
            outline = _outline(entry.get("segmentation"))
            kept = inside[2] > inside[0] and inside[3] > inside[1] and (outline is not None or not self.masks)
            if not np.isfinite(box).all() or not kept:
                dropped.append(f"annotation {entry.get('id')} of {picture.file}")
                continue
            if cut and np.abs(box - inside).max() > 1:
                trimmed.append(f"annotation {entry.get('id')} of {picture.file}")
            width, height = inside[2] - inside[0], inside[3] - inside[1]
            picture.objects.append(dict(
                box=(inside if cut else box).astype(np.float32), label=number[int(entry["category_id"])],
                area=float(entry.get("area") or width * height), crowd=int(entry.get("iscrowd", 0)),
                outline=outline if self.masks else None))  # fmt: skip
        counts = [
            (dropped, "boxes left out: outside their image, without area" + (", or without a mask" * self.masks)),
            (trimmed, "boxes reach beyond their image; cut to it"),
            (strangers, "annotations left out: of images that are not listed"),
        ]
        for found, what in counts:
            if found:
                example = f" (such as {found[0]})" if isinstance(found[0], str) else ""
                self.notes.append(f"{split}: {len(found)} of {len(entries)} {what}{example}")

    def _present(self, pictures: list[_Picture], file: Path, split: str, skip: bool) -> list[_Picture]:
        held: dict[Path, set[str]] = {}
        missing = []
        for picture in pictures:
            path = self.folder / picture.file
            if path.parent not in held:
                held[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in held[path.parent]:
                missing.append(picture.file)
        if not missing:
            return pictures
        what = f"{len(missing)} of {len(pictures)} images that {file.name} lists are missing in {self.folder}"
        if not skip or len(missing) == len(pictures):
            advice = "" if skip else "; data.unreadable skip leaves them out"
            raise UserError(f"data.root: {what} (such as {missing[0]}){advice}")
        self.notes.append(f"{split}: {what} (such as {missing[0]}); left out")
        absent = set(missing)
        return [picture for picture in pictures if picture.file not in absent]

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        """What a message calls picture ``index``."""
        return str(self.folder / self.pictures[index].file)

    def aspects(self) -> np.ndarray:
        """Width over height of every picture, float64 ``[length]``."""
        return np.array([picture.width / picture.height for picture in self.pictures])

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        """The picture and its objects.

        Raises:
            Unreadable: where it is damaged, or of another size than its annotations say.
        """
        picture, name = self.pictures[index], self.name(index)
        try:
            file = open(name, "rb")  # noqa: SIM115  decode closes it
        except OSError as error:
            raise Unreadable(f"cannot read image {name}: {error}") from None
        image = decode(file, name)
        if image.size != (picture.width, picture.height):
            said = f"{picture.width}x{picture.height}"
            raise Unreadable(f"cannot use image {name}: it is {image.width}x{image.height}, its annotations say {said}")
        return image, self._target(picture)

    def _target(self, picture: _Picture) -> Target:
        objects = picture.objects
        boxes = np.stack([x["box"] for x in objects]) if objects else np.zeros((0, 4), np.float32)
        target = dict(
            boxes=torch.from_numpy(boxes), labels=torch.tensor([x["label"] for x in objects], dtype=torch.int64),
            area=torch.tensor([x["area"] for x in objects], dtype=torch.float32),
            iscrowd=torch.tensor([x["crowd"] for x in objects], dtype=torch.int64))  # fmt: skip
        if self.masks:
            masks = [draw(x["outline"], picture.height, picture.width) for x in objects]
            empty = np.zeros((0, picture.height, picture.width), np.uint8)
            target["masks"] = torch.from_numpy(np.stack(masks) if masks else empty)
        return target


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"data.root: the annotation file {file} does not exist")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"data.root: {file} is not a json file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"data.root: {file} is not in COCO's format: it holds no object with images and annotations")
    return content


def _outline(segmentation: Any) -> list[np.ndarray] | dict[str, Any] | None:
    """Polygons with at least three corners each, or run lengths; None where there are neither."""
    if isinstance(segmentation, dict):
        return segmentation
    polygons = [np.asarray(x, dtype=np.float64) for x in segmentation or () if len(x) >= 6]
    return polygons or None


def draw(outline: list[np.ndarray] | dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask of polygons or run lengths as COCO draws it, uint8 ``[height, width]``."""
    if isinstance(outline, dict):
        runs = outline if isinstance(outline["counts"], str | bytes) else coco_mask.frPyObjects(outline, height, width)
    else:
        runs = coco_mask.merge(coco_mask.frPyObjects([list(map(float, x)) for x in outline], height, width))
    return coco_mask.decode(runs)
