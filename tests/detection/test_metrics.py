"""Average precision: the numbers of pycocotools' own evaluation of the same predictions."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionattn.detection.coco import Coco
from visionattn.detection.metrics import CocoPrecision


def predictions(pictures: Coco) -> list[dict[str, torch.Tensor]]:
    """What is there, moved, missed and mistaken at random."""
    generator, found = torch.Generator().manual_seed(1), []
    for i in range(len(pictures)):
        _, target = pictures[i]
        boxes, labels, masks = [], [], []
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"]):
            for _ in range(int(torch.randint(0, 4, (1,), generator=generator))):
                boxes.append(box + torch.randn(4, generator=generator) * 2)
                wrong = torch.rand(1, generator=generator) < 0.3
                labels.append(torch.randint(0, 10, (), generator=generator) if wrong else label)
                masks.append(mask.roll(int(torch.randint(0, 5, (1,), generator=generator)), 1))
        shape = target["masks"].shape[1:]
        found.append(dict(
            boxes=torch.stack(boxes) if boxes else torch.zeros(0, 4),
            scores=torch.rand(len(boxes), generator=generator),
            labels=torch.tensor(labels, dtype=torch.int64),
            masks=torch.stack(masks)[:, None].float() if masks else torch.zeros(0, 1, *shape)))  # fmt: skip
    return found


def pycocotools_says(file: Path, pictures: Coco, found: list[dict[str, torch.Tensor]], kind: str) -> list[float]:
    results = []
    for picture, one in zip(pictures.pictures, found):
        for box, score, label, mask in zip(*(one[name] for name in ("boxes", "scores", "labels", "masks"))):
            x1, y1, x2, y2 = box.tolist()
            runs = coco_mask.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8)))
            results.append(dict(
                image_id=picture.image_id, category_id=pictures.category_ids[int(label)], score=float(score),
                **({"segmentation": runs} if kind == "segm" else {"bbox": [x1, y1, x2 - x1, y2 - y1]})))  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        judge = COCOeval(truth, truth.loadRes(results), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[:3].tolist()


@pytest.mark.parametrize("crowds", [False, True])
def test_evaluation_equals_pycocotools_own(coco: Path, change: Callable, crowds: bool) -> None:
    def spoil(content: dict) -> None:
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] != 103]  # a negative
        for entry in content["annotations"][::3]:
            entry["iscrowd"] = int(crowds)

    change("train", spoil)
    file = coco / "annotations" / "instances_train2017.json"
    pictures = Coco(coco / "train2017", file, "train", True, False, False)
    found = predictions(pictures)
    precision = CocoPrecision(masks=True)
    for i in range(0, len(pictures), 5):
        part = range(i, min(i + 5, len(pictures)))
        precision.update([found[j] for j in part], [pictures[j][1] for j in part])
    ours = precision.compute()
    assert list(ours) == precision.names()
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        theirs = pycocotools_says(file, pictures, found, kind)
        assert 0.05 < theirs[0] < 0.95
        assert [ours[f"{name}_{short}"] for short in ("ap", "ap50", "ap75")] == pytest.approx(theirs, abs=1e-6)


def test_finding_nothing_is_a_precision_of_zero(coco: Path) -> None:
    pictures = Coco(coco / "val2017", coco / "annotations" / "instances_val2017.json", "val", False, False, False)
    precision = CocoPrecision(masks=False)
    nothing = dict(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    precision.update([nothing] * 5, [pictures[i][1] for i in range(5)])
    assert precision.compute() == dict(box_ap=0.0, box_ap50=0.0, box_ap75=0.0)
