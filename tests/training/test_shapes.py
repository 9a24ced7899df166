"""The generated data set: pure functions of their seeds, exact masks, tight boxes, balanced classes."""

import math

import numpy as np
import pytest

from visionattn.training.shapes import CLASSES, OUTLINES, Shapes, boxes_of, contact_sheet, draw_scene

# Area and perimeter of the outlines with circumradius 1, by hand.
FIGURES = {
    "circle": (math.pi * 0.9**2, 2 * math.pi * 0.9),
    "square": (1.52**2, 4 * 1.52),
    "triangle": (3 * math.sqrt(3) / 4, 3 * math.sqrt(3)),
    "pentagon": (2.5 * math.sin(0.4 * math.pi), 10 * math.sin(0.2 * math.pi)),
    "star": (5 * 0.45 * math.sin(0.2 * math.pi), 10 * math.sqrt(1.2025 - 0.9 * math.cos(0.2 * math.pi))),
    "cross": (2 * 2 * 0.6 - 0.6**2, 8.0),
    "ring": (math.pi * (0.95**2 - 0.51**2), 2 * math.pi * (0.95 + 0.51)),
    "heart": (1.12**2 + math.pi * 0.56**2, 2 * 1.12 + 2 * math.pi * 0.56),
}


@pytest.mark.parametrize("name", FIGURES)
def test_mask_has_the_area_of_the_figure(name: str) -> None:
    # Steinhaus: the pixel centres inside a curve of length L (in pixels) differ from its area by less than L.
    area, perimeter = FIGURES[name]
    size, scale, whole = 96, 0.25, 0
    for index in range(CLASSES.index(name), 200, 10):
        scene = draw_scene(index, size=size, object_scale=(scale, scale))
        mask = scene.masks[0]
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue  # reaches over the picture's edge
        whole += 1
        unit = size * scale  # the stretch along one axis is undone along the other: areas stay, lengths grow
        assert abs(mask.sum() - area * unit**2) < perimeter * unit * math.exp(0.22)
    assert whole >= 5


@pytest.mark.parametrize("name", CLASSES)
def test_outline_is_a_distance_near_itself(name: str) -> None:
    line = np.linspace(-1.5, 1.5, 301)
    x, y = np.meshgrid(line, line)
    value = OUTLINES[name](x, y)
    slope = np.hypot(*np.gradient(value, line, line))
    assert value.min() < 0 < value.max()
    # Where the outline is smooth the slope is 1; corners are the minority.
    assert np.median(slope[np.abs(value) < 0.03]) == pytest.approx(1, abs=0.02)


def test_pictures_are_the_same_in_every_call_and_however_they_are_shared_out() -> None:
    one = Shapes("train", 1010, 16, seed=4).images
    assert one.shape == (1010, 16, 16, 3) and one.dtype == np.uint8
    assert np.array_equal(one, Shapes("train", 1010, 16, seed=4, processes=3).images)
    assert np.array_equal(one[:7], Shapes("train", 7, 16, seed=4).images)
    assert np.array_equal(one[1003], draw_scene(1003, "train", 4, 16).image)


def test_seed_split_and_index_each_change_the_picture() -> None:
    first = draw_scene(0, "train", 0, 32).image
    for other in (draw_scene(10, "train", 0, 32), draw_scene(0, "val", 0, 32), draw_scene(0, "train", 1, 32)):
        assert not np.array_equal(first, other.image)


def test_classes_are_balanced() -> None:
    images = Shapes("val", 57, 8)
    labels = [images[i][1] for i in range(len(images))]
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1 and len(counts) == len(images.classes) == 10
    assert all(draw_scene(i, "val", size=8).labels[0] == labels[i] for i in range(10))
    assert images[3][0].size == (8, 8) and images.name(3) == "shapes picture 3"


def test_several_objects_overlap_with_disjoint_visible_masks_and_tight_boxes() -> None:
    counts = []
    for index in range(12):
        scene = draw_scene(index, "train", seed=2, size=(48, 72), objects=(1, 4), object_scale=(0.15, 0.3))
        n = len(scene.labels)
        counts.append(n)
        assert scene.image.shape == (48, 72, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (n, 48, 72) and scene.masks.dtype == bool
        assert scene.masks.sum(0).max() <= 1 and scene.masks.any((1, 2)).all()
        assert scene.boxes.shape == (n, 4) and scene.boxes.dtype == np.float32
        for mask, box in zip(scene.masks, scene.boxes.astype(int)):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
    assert 1 <= min(counts) < max(counts) <= 4


def test_a_scene_may_be_empty() -> None:
    for index in range(10):
        bare = draw_scene(index, size=32, objects=0)
        assert len(bare.labels) == 0 and bare.masks.shape == (0, 32, 32) and bare.boxes.shape == (0, 4)
    assert np.array_equal(boxes_of(np.zeros((1, 4, 4), dtype=bool)), np.zeros((1, 4), dtype=np.float32))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split is 'dev'; it must be one of train, val, test"):
        draw_scene(0, "dev")


def test_contact_sheet_is_drawn(tmp_path) -> None:
    contact_sheet(str(tmp_path / "sheet.png"), rows=1, size=24, zoom=1, scenes=2)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
