"""COCO's format: what is read, what is left out and said, what is refused."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from visionattn.detection.coco import Coco
from visionattn.detection.sources import ShapeScenes, load_pictures
from visionattn.training.errors import Unreadable, UserError


def read(root: Path, split: str = "train", masks: bool = True, cut: bool = True, skip: bool = False) -> Coco:
    return Coco(root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json", split, masks, cut, skip)


def test_boxes_labels_and_masks_are_those_that_pycocotools_reads(coco: Path) -> None:
    ours, notes = read(coco), []
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(coco / "annotations" / "instances_train2017.json")
    assert ours.notes == notes and len(ours) == 12
    for i, image_id in enumerate(sorted(theirs.imgs)):
        image, target = ours[i]
        entries = theirs.loadAnns(theirs.getAnnIds(image_id))
        assert (image.height, image.width) == tuple(theirs.imgs[image_id][key] for key in ("height", "width"))
        assert [ours.category_ids[label] for label in target["labels"]] == [x["category_id"] for x in entries]
        expected = np.array([[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)])
        assert torch.equal(target["boxes"], torch.tensor(expected, dtype=torch.float32))
        assert np.array_equal(target["masks"].numpy(), np.stack([theirs.annToMask(x) for x in entries]))
        assert target["masks"].any()


def test_polygons_and_uncompressed_runs_are_drawn_as_pycocotools_draws_them(coco: Path, change: Callable) -> None:
    def other_forms(content: dict) -> None:
        first, second = content["annotations"][:2]
        first["segmentation"] = [[10, 10, 40, 12, 30, 40.5], [1, 1, 5, 1, 5, 5], [2, 2]]
        second["segmentation"] = {"size": [80, 56], "counts": [100, 50, 80 * 56 - 150]}
        second["image_id"] = first["image_id"]

    change("train", other_forms)
    _, target = read(coco)[0]
    file = coco / "annotations" / "instances_train2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(file)
    first, second = theirs.loadAnns([1, 2])
    first["segmentation"].pop()  # two numbers are no polygon
    assert np.array_equal(target["masks"][0].numpy(), theirs.annToMask(first)) and target["masks"][0].sum() > 300
    assert np.array_equal(target["masks"][1].numpy(), theirs.annToMask(second)) and target["masks"][1].sum() == 50


def test_objects_that_cannot_be_are_left_out_counted_and_named(coco: Path, change: Callable) -> None:
    def spoil(content: dict) -> None:
        first, second, third = content["annotations"][:3]
        first["bbox"], second["bbox"], third["bbox"] = [500, 500, 9, 9], [3, 3, 0, 9], [-20, 5, 40, 10]
        content["annotations"].append(dict(third, id=99, image_id=12345))
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] != 104]

    whole = sum(len(read(coco)[i][1]["labels"]) for i in range(12))
    lost = len(read(coco)[4][1]["labels"])
    change("train", spoil)
    found = read(coco)
    text = "\n".join(found.notes)
    assert "2 of " in found.notes[0] and "outside their image, without area" in text
    assert "annotation 1 of 0000.png" in text
    assert "boxes reach beyond their image; cut to it (such as annotation 3 of" in text
    assert "1 of " in found.notes[2] and "of images that are not listed" in text
    empty = sum(not len(found[i][1]["labels"]) for i in range(12))
    assert empty >= 1 and f"{empty} of 12 images have no objects; kept as negatives" in text
    assert len(found[4][1]["boxes"]) == 0 and found[4][1]["masks"].shape == (0, 64, 80)
    assert sum(len(found[i][1]["labels"]) for i in range(12)) == whole - lost - 2
    for i in range(12):
        image, target = found[i]
        assert (target["boxes"] >= 0).all() and (target["boxes"][:, 2] <= image.width).all()
    uncut = read(coco, cut=False)
    assert any(float(uncut[i][1]["boxes"].min()) < 0 for i in range(3) if len(uncut[i][1]["boxes"]))


FILE = "annotations/instances_train2017.json"
ONE = '"categories": [{"id": 1, "name": "a"}]}'
TEXTS = {
    "broken json": ('{"images": [', "is not a json file"),
    "a list": ("[1]", "not in COCO's format"),
    "no categories": ('{"images": [], "annotations": []}', "'categories' is missing"),
    "nothing in it": ('{"images": [], "annotations": [], ' + ONE, "lists no images"),
    "words for numbers": ('{"images": [{"id": "x"}], "annotations": [], ' + ONE, "not in COCO's format"),
}
DAMAGES = {
    "no file": (lambda root: (root / FILE).unlink(), "train2017.json does not exist"),
    "no folder": (lambda root: (root / "train2017").rename(root / "elsewhere"), "train2017 is not a directory"),
    "missing image": (
        lambda root: (root / "train2017" / "0003.png").unlink(),
        "1 of 12 images that instances_train2017.json lists are missing in",
    ),
}


@pytest.mark.parametrize("case", [*TEXTS, *DAMAGES])
def test_what_is_no_coco_is_refused_in_one_line(coco: Path, case: str) -> None:
    if case in TEXTS:
        text, message = TEXTS[case]
        (coco / FILE).write_text(text)
    else:
        damage, message = DAMAGES[case]
        damage(coco)
    with pytest.raises(UserError) as error:
        read(coco)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unlisted_category_is_refused(coco: Path, change: Callable) -> None:
    change("train", lambda content: content["annotations"][1].update(category_id=99))
    with pytest.raises(UserError, match="annotation 2 is of category_id 99, which its categories do not list"):
        read(coco)


def test_missing_images_are_left_out_where_that_is_asked_for(coco: Path) -> None:
    (coco / "train2017" / "0003.png").unlink()
    found = read(coco, skip=True)
    assert len(found) == 11 and "1 of 12 images" in found.notes[0] and "0003.png); left out" in found.notes[0]


def test_damaged_images_and_those_of_another_size_are_unreadable(coco: Path) -> None:
    (coco / "train2017" / "0002.png").write_bytes(b"\x89PNG no more")
    (coco / "train2017" / "0000.png").write_bytes((coco / "train2017" / "0001.png").read_bytes())
    found = read(coco)
    with pytest.raises(Unreadable, match="cannot read image .*0002.png"):
        found[2]
    with pytest.raises(Unreadable, match="0000.png: it is 80x64, its annotations say 56x80"):
        found[0]


def test_splits_with_other_categories_are_refused(coco: Path, change: Callable, tiny: Callable) -> None:
    change("val", lambda content: content["categories"][0].update(name="sphere"))
    with pytest.raises(UserError, match="the splits' categories differ, for example in 7 "):
        load_pictures(tiny("--data.dataset", "coco", "--data.root", coco))


def test_scenes_are_the_same_every_time_and_masks_fit_boxes() -> None:
    one, two = (ShapeScenes("train", 5, 48, 0, True, 1) for _ in range(2))
    for i in range(5):
        (image, target), (again, _) = one[i], two[i]
        assert image.tobytes() == again.tobytes()
        for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].int().tolist()):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
