"""What a segmentor's checkpoint says of pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.predict.cli import main
from visionattn.training.shapes import draw_scene

pytest.importorskip("visionattn.segmentation.stack", reason="needs visionattn.segmentation")
pytest.importorskip("mmseg", reason="needs visionattn[seg]")

from visionattn.predict import segmentation
from visionattn.training.trained import running

CLASSES, PALETTE = ["ground", "sky", "tree"], [[10, 20, 30], [200, 0, 0], [0, 200, 0]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two checkpoints, as mmengine writes them."""
    segmentation.stack.load_mmseg()
    from mmengine.config import Config
    from mmseg.registry import MODELS

    from visionattn.segmentation import plugin  # noqa: F401

    model = dict(
        type="Segmentor",
        data_preprocessor=dict(type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
                               pad_val=0, seg_pad_val=255, size_divisor=32),
        backbone=dict(type="VisionAttnBackbone", name="gna_nano", checkpoint="gone.pth", pretrained=False,
                      kwargs=dict(stem_stride=4, dims=[16, 16, 16, 16], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])),
        decode_head=dict(type="FCNHead", in_channels=16, in_index=0, channels=16, num_convs=1, concat_input=False,
                         num_classes=3, norm_cfg=dict(type="BN", requires_grad=True), align_corners=False),
        test_cfg=dict(mode="whole"))  # fmt: skip
    pipeline = [dict(type="Resize", scale=(64, 48), keep_ratio=True), dict(type="PackSegInputs")]
    config = Config(dict(model=model, val_dataloader=dict(dataset=dict(type="CamVid", pipeline=pipeline)), x=(1, -2.5)))
    torch.manual_seed(0)
    fresh = dict(model, backbone=dict(model["backbone"], checkpoint=None))
    network = MODELS.build(Config(dict(model=fresh)).model)
    torch.nn.init.normal_(network.decode_head.conv_seg.weight)
    folder = tmp_path_factory.mktemp("seg") / "run"
    folder.mkdir()
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=CLASSES, palette=PALETTE))
    torch.save(dict(state_dict=network.state_dict(), meta=meta), folder / "iter_20.pth")
    torch.save(dict(state_dict=network.state_dict(), meta=dict(meta, cfg="import os")), folder / "iter_9.pth")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for i, size in enumerate(((48, 64), (90, 70))):
        Image.fromarray(draw_scene(i, "test", size=size, objects=2).image).save(f"in/{i}.png")
    return tmp_path


def test_the_last_checkpoint_of_a_run_gives_shares_and_overlays(here: Path, run: Path) -> None:
    assert main([str(run), "in", "--out", "out", "--device", "cpu"]) == 0
    found = json.loads(Path("out/predictions.json").read_text())
    assert found["kind"] == "segmentation" and found["model"]["weights"] == "iter_20.pth"
    for one in found["images"]:
        assert sum(part["share"] for part in one["shares"]) == pytest.approx(1, abs=1e-4)
        assert all(part["class"] == CLASSES[part["index"]] for part in one["shares"])
        assert Image.open(Path("out") / one["picture"]).size[0] > 600
    assert Path("out/sheet.png").exists()


def test_masks_have_the_size_of_the_picture_and_colours_lie_over_it(here: Path, run: Path) -> None:
    predictor = segmentation.SegmentorPredictor(run / "iter_20.pth", "run", running("cpu", "fp32"))
    image = Image.open("in/1.png").convert("RGB")
    (named,) = segmentation_names()
    (answer,) = predictor([named], [image])
    assert answer.mask.shape == (90, 70) and len(np.unique(answer.mask)) > 1
    over = np.asarray(answer.overlay(image)).astype(int)
    expected = 0.45 * np.asarray(image) + 0.55 * np.array(PALETTE)[answer.mask]
    assert np.abs(over - expected).max() <= 1


def segmentation_names() -> list:
    from visionattn.predict.pictures import collect

    return collect(["in/1.png"])


def test_a_config_in_a_checkpoint_is_read_and_not_run() -> None:
    text = "a = dict(b=[1, -2.5], c=dict(d=(None, True)), **{'e-f': 'g'})\nh = 'i'\n"
    assert segmentation.read_config(text) == dict(a={"b": [1, -2.5], "c": {"d": (None, True)}, "e-f": "g"}, h="i")
    for bad in ("import os", "a = open('x')", "a = dict(b=__import__('os'))", "a = b", "print(1)"):
        with pytest.raises(ValueError):
            segmentation.read_config(bad)


CASES = {
    "config that runs code": (["RUN/iter_9.pth"], "does not say its model and classes: line 1 is no assignment"),
    "size": (["RUN", "--size", "64"], "--size is for other models"),
    "averaged weights": (["RUN", "--weights", "ema"], "--weights is for other models"),
    "damaged": (["iter_1.pth"], "checkpoint iter_1.pth cannot be read"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line(here: Path, run: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    Path("iter_1.pth").write_bytes(b"short")
    (model, *options), message = CASES[case]
    assert main([model.replace("RUN", str(run)), "in", *options, "--device", "cpu"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("visionattn")]
    assert len(err) == 1 and message in err[0], err
    assert sorted(path.name for path in here.iterdir()) == ["in", "iter_1.pth"]


def test_missing_packages_are_named(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segmentation.stack, "find_spec", lambda name: None)
    assert main([str(run), "in", "--device", "cpu"]) == 2
    assert "pip install 'visionattn[seg]'" in capsys.readouterr().err
