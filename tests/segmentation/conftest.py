"""Segmentation in the small: a narrow gna_nano, and folders of generated scenes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.training.shapes import draw_scene

NARROW = dict(stem_stride=4, dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))


@pytest.fixture(scope="session")
def plugin() -> None:
    """mmsegmentation with this project's parts registered."""
    pytest.importorskip("mmseg", reason="needs the extra seg")
    import visionattn.segmentation.plugin  # noqa: F401


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder(classes=3)``: pictures and masks as CamVid has them, with class 0 as background and 11 as void."""

    def make(classes: int = 3, count: int = 6) -> Path:
        for split in ("train", "val"):
            for i in range(count):
                scene = draw_scene(i, split, size=(40, 56), objects=(1, 3), object_scale=(0.2, 0.34))
                mask = np.zeros((40, 56), np.uint8)
                for label, visible in zip(scene.labels, scene.masks):
                    mask[visible] = 1 + label % (classes - 1)
                mask[0] = 11
                for kind, array, suffix in (("images", scene.image, "jpg"), ("masks", mask, "png")):
                    path = tmp_path / "data" / kind / split / f"{i}.{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path)
        return tmp_path / "data"

    return make
