"""Scenes from folders and generated ones: what comes out, and which mistake is told how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.training.errors import Unreadable, UserError

pytestmark = pytest.mark.usefixtures("plugin")
CLASSES = ("ground", "round", "square")


def scenes(root: Path, **more: Any):
    from visionattn.segmentation.data import SceneFolder

    options = dict(images="images/train", masks="masks/train", classes=CLASSES, ignored=(11,))
    return SceneFolder(str(root), **{**options, **more})


def test_a_folder_gives_pictures_and_masks_of_the_same_names(folder: Callable[..., Path]) -> None:
    root = folder()
    dataset = scenes(root)
    assert len(dataset) == 6 and dataset.metainfo["classes"] == CLASSES
    for i in range(6):
        sample = dataset[i]
        picture = np.asarray(Image.open(root / f"images/train/{i}.jpg"))
        mask = np.asarray(Image.open(root / f"masks/train/{i}.png"))
        assert np.array_equal(sample["img"][..., ::-1], picture)
        assert np.array_equal(sample["gt_seg_map"], np.where(mask == 11, 255, mask))


def test_classes_counted_from_one_begin_at_zero(folder: Callable[..., Path]) -> None:
    root = folder()
    masks = scenes(root, classes=CLASSES[1:], offset=1, ignored=(0, 11))
    mask = np.asarray(Image.open(root / "masks/train/2.png"))
    assert np.array_equal(masks[2]["gt_seg_map"], np.where((mask == 0) | (mask == 11), 255, mask.astype(int) - 1))


def test_a_palette_is_read_as_classes(folder: Callable[..., Path]) -> None:
    root = folder()
    before = scenes(root)[0]["gt_seg_map"]
    picture = Image.open(root / "masks/train/0.png")
    picture.putpalette([7 * i % 256 for i in range(768)])
    picture.save(root / "masks/train/0.png")
    assert np.array_equal(scenes(root)[0]["gt_seg_map"], before)


def test_masks_keep_their_size_where_predictions_are_judged(folder: Callable[..., Path]) -> None:
    resize = [dict(type="Resize", scale=(112, 80), keep_ratio=True), dict(type="PackSegInputs")]
    for judged, size in ((True, (40, 56)), (False, (80, 112))):
        sample = scenes(folder(), pipeline=resize, test_mode=judged)[0]
        assert sample["inputs"].shape == (3, 80, 112) and sample["data_samples"].gt_sem_seg.data.shape[1:] == size


def spoil(root: Path, case: str) -> None:
    image, mask = root / "images/train/3.jpg", root / "masks/train/3.png"
    if case == "unknown class":
        array = np.asarray(Image.open(mask)).copy()
        array[5, 9] = 7
        Image.fromarray(array).save(mask)
    elif case == "no mask":
        mask.unlink()
    elif case == "no image":
        image.unlink()
    elif case == "damaged image":
        image.write_bytes(image.read_bytes()[:300])
    elif case == "damaged mask":
        mask.write_bytes(b"no picture")
    elif case == "colour mask":
        Image.open(image).save(mask)
    elif case == "other size":
        Image.open(mask).resize((20, 20)).save(mask)


SPOILT = {
    "unknown class": r"masks/train/3.png has the value 7 at row 5, column 9, .*allowed are 0 to 2, and \[11, 255\]",
    "no mask": r"images/train/3.jpg has no mask 3\.\* in .*masks/train",
    "no image": r"masks/train/3.png has no image 3\.\* in .*images/train",
    "damaged image": r"cannot read image .*images/train/3.jpg: ",
    "damaged mask": r"cannot read mask .*masks/train/3.png: ",
    "colour mask": r"3.png must have one 8-bit channel or a palette, but is uint8 \[40, 56, 3\]",
    "other size": r"masks/train/3.png is 20x20, but its image is 56x40",
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_mistake_in_a_folder_names_its_file(folder: Callable[..., Path], case: str) -> None:
    root = folder()
    spoil(root, case)
    with pytest.raises((UserError, Unreadable), match=SPOILT[case]):
        list(map(scenes(root).__getitem__, range(6)))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images/train is not a folder; images are expected there"):
        scenes(tmp_path)


def shapes(**more: Any):
    from visionattn.segmentation.data import ShapesScenes

    return ShapesScenes(**{**dict(split="train", length=12, processes=1), **more})


def test_generated_scenes_show_every_class_and_are_the_same_every_time() -> None:
    dataset = shapes(length=40)
    masks = np.stack([dataset[i]["gt_seg_map"] for i in range(40)])
    assert set(np.unique(masks)) == set(range(11)) and len(dataset.metainfo["classes"]) == 11
    again = shapes(length=40, processes=2)
    assert all(np.array_equal(dataset[i]["img"], again[i]["img"]) for i in range(40))
    assert not np.array_equal(dataset[0]["img"], shapes(split="val")[0]["img"])


def test_augmentation_depends_on_the_key_alone() -> None:
    crop = [dict(type="RandomCrop", crop_size=(32, 32)), dict(type="PhotoMetricDistortion")]
    dataset = shapes(pipeline=crop)
    first = [dataset[(0, epoch, 3, 0)]["img"] for epoch in range(6)]
    np.random.seed(5)
    dataset[(0, 9, 2, 0)]
    assert all(np.array_equal(dataset[(0, epoch, 3, 0)]["img"], first[epoch]) for epoch in (5, 2, 0))
    assert any(not np.array_equal(first[0], other) for other in first[1:])


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="split is 'training'; it must be one of train, val, test"):
        shapes(split="training")
