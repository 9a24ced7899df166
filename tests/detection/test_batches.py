"""Batches: stateless, shared out without overlap, of one aspect, with boxes and masks that follow the image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.detection import batches
from visionattn.detection.batches import AspectSampler, DetPlain, DetSamples
from visionattn.detection.sources import ShapeScenes, load_pictures
from visionattn.training.errors import Unreadable
from visionattn.training.shapes import boxes_of

ASPECTS = np.array([1.5, 0.7, 1.0, 1.3, 0.5] * 9)


def keys(**more: int) -> list[list[tuple[int, int, int]]]:
    how = dict(batch_size=6, steps=14, seed=3)
    return list(AspectSampler(ASPECTS, **{**how, **more}))


def test_the_images_of_a_step_share_an_aspect_and_an_epoch_sees_each_image_at_most_once() -> None:
    steps = keys()
    assert len(steps) == 14
    for epoch in (0, 1):
        seen = [index for step in steps[7 * epoch : 7 * epoch + 7] for _, index, _ in step]
        assert len(set(seen)) == len(seen) == 42
        mixed = [len({bool(ASPECTS[index] >= 1) for _, index, _ in step}) for step in steps[7 * epoch : 7 * epoch + 7]]
        assert mixed[:-1] == [1] * 6  # what is left over at the end may mix
    assert steps[:7] != steps[7:]


def test_ranks_and_micro_steps_share_a_step_out_and_any_start_gives_the_same_rest() -> None:
    whole = keys()
    parts = [keys(accumulation=3, rank=rank, world=2) for rank in (0, 1)]
    for i, step in enumerate(whole):
        shared = [key for micro in range(3) for rank in (0, 1) for key in parts[rank][3 * i + micro]]
        assert shared == step
    assert keys(start=5) == whole[5:]


@pytest.mark.parametrize("resize", [[], ["--augment.resize", "jitter", "--augment.crop", 64]])
def test_boxes_and_masks_follow_the_image(tiny: Callable, resize: list) -> None:
    config = tiny("--model.detector", "maskrcnn", "--augment.short_sides", "[48, 80]", "--augment.hflip", 1, *resize)
    samples = DetSamples(ShapeScenes("train", 6, 64, 0, True, 1), config)
    sizes = set()
    for index in range(6):
        image, target, _ = samples[(0, index, 0)]
        sizes.add(image.shape[1:])
        assert image.dtype == torch.uint8 and target["masks"].shape[1:] == image.shape[1:]
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        tight = torch.from_numpy(boxes_of(target["masks"].bool().numpy()))
        filled = target["masks"].bool().flatten(1).any(1)
        assert (tight - target["boxes"])[filled].abs().max() <= 2  # a pixel of rounding at a side, scaled
    assert len(sizes) == (1 if resize else 2)


def test_a_sample_depends_on_its_key_alone(tiny: Callable, equal_bits: Callable) -> None:
    config = tiny("--augment.resize", "jitter", "--augment.crop", 64)
    samples = DetSamples(ShapeScenes("train", 6, 64, 0, False, 1), config)
    first = samples[(1, 2, 0)]
    samples[(0, 0, 0)]
    torch.rand(7)
    again = samples[(1, 2, 0)]
    assert torch.equal(first[0], again[0]) and equal_bits(first[1], again[1])
    assert not torch.equal(first[0], samples[(2, 2, 0)][0])


def test_unreadable_images_stop_or_are_replaced_and_named(coco: Path, tiny: Callable) -> None:
    (coco / "train2017" / "0002.png").write_bytes(b"no picture")
    (coco / "val2017" / "0001.png").write_bytes(b"no picture")
    argv = ["--data.dataset", "coco", "--data.root", coco]
    with pytest.raises(Unreadable, match="cannot read image .*0002.png"):
        DetSamples(load_pictures(tiny(*argv))[0], tiny(*argv))[(0, 2, 0)]
    config = tiny(*argv, "--data.unreadable", "skip")
    train, val = load_pictures(config)
    samples = DetSamples(train, config)
    image, _, name = samples[(0, 2, 0)]
    assert name.endswith("0002.png") and image.shape == samples[(0, 3, 0)][0].shape
    assert [bool(DetPlain(val, config)[i][2]) for i in range(5)] == [False, True, False, False, False]


def test_crowds_are_not_trained_on_and_are_kept_for_evaluation(coco: Path, tiny: Callable, change: Callable) -> None:
    change("train", lambda content: content["annotations"][0].update(iscrowd=1))
    config = tiny("--data.dataset", "coco", "--data.root", coco)
    train, _ = load_pictures(config)
    assert len(DetSamples(train, config)[(0, 0, 0)][1]["labels"]) == len(DetPlain(train, config)[0][1]["labels"]) - 1


def test_workers_change_nothing(tiny: Callable, equal_bits: Callable) -> None:
    images = ShapeScenes("train", 16, 64, 0, False, 1)
    read = [list(batches.train_batches(tiny("--data.workers", n), images, 3, 1, 0, 1, False)) for n in (0, 2)]
    assert len(read[0]) == 2 and equal_bits(read[0], read[1])
