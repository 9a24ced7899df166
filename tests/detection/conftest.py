"""A detector small enough for a test, and generated pictures written out in COCO's format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pycocotools")

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from visionattn.detection.config import DetConfig, validate
from visionattn.training.options import parse
from visionattn.training.shapes import CLASSES, draw_scene

MODEL = "{stem_stride: 4, dims: [16, 16, 32, 32], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}"
TINY = [
    "--model.kwargs", MODEL, "--model.fpn_channels", "64", "--model.head_convs", "1", "--data.shapes_size", "64",
    "--data.short_side", "64", "--data.long_side", "96", "--data.shapes_train", "16", "--data.shapes_val", "6",
    "--optim.batch_size", "4", "--schedule.epochs", "2", "--run.device", "cpu", "--run.log_steps", "1",
    "--run.threads", "1", "--run.eval_every", "2", "--data.eval_batch_size", "4",
]  # fmt: skip
ROIS = "{box_batch_size_per_image: 8, rpn_post_nms_top_n_train: 20, rpn_post_nms_top_n_test: 10}"


@pytest.fixture(scope="session")
def tiny_argv() -> list[str]:
    """The options of a tiny run."""
    return list(TINY)


@pytest.fixture(scope="session")
def backbone() -> str:
    """The arguments of its backbone."""
    return MODEL


@pytest.fixture(scope="session")
def few_regions() -> list[str]:
    """Options that keep the two-stage detectors quick."""
    return ["--model.detector_kwargs", ROIS]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., DetConfig]:
    """``tiny(*argv)``: the options of a tiny run, with those in argv over them."""

    def make(*argv: object) -> DetConfig:
        config = parse(DetConfig, [*TINY, *map(str, argv)], "test", "")
        validate(config)
        return config

    return make


def polygon(box: np.ndarray) -> list[float]:
    """The rectangle of a box as a polygon."""
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def write_coco(root: Path, train: int = 12, val: int = 5) -> Path:
    """``root/{train,val}2017`` and ``root/annotations``: pictures that lie and stand, masks as run lengths."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 3 * i + 7, "name": name} for i, name in enumerate(CLASSES)]
    for split, count in (("train", train), ("val", val)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for i in range(count):
            size = (64, 80) if i % 3 else (80, 56)
            scene = draw_scene(i, split, 0, size, objects=(1, 3), object_scale=(0.15, 0.3))
            name = f"{i:04d}.png"
            Image.fromarray(scene.image).save(root / f"{split}2017" / name)
            images.append({"id": 100 + i, "file_name": name, "height": size[0], "width": size[1]})
            for label, mask, (x1, y1, x2, y2) in zip(scene.labels, scene.masks, scene.boxes.tolist()):
                runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append({
                    "id": len(annotations) + 1, "image_id": 100 + i, "category_id": categories[label]["id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(mask.sum()), "iscrowd": 0,
                    "segmentation": {"size": list(size), "counts": runs["counts"].decode()},
                })  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The root of a small set in COCO's format that a test may damage."""
    return write_coco(tmp_path / "coco")


@pytest.fixture
def change(coco: Path) -> Callable[..., None]:
    """``change(split, function)``: let a function change the content of a split's annotations."""

    def apply(split: str, function: Callable[[dict], None]) -> None:
        file = coco / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        function(content)
        file.write_text(json.dumps(content))

    return apply
