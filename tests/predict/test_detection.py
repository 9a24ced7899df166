"""What a detector's checkpoint says of pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from visionattn.predict.cli import main
from visionattn.predict.kinds import Asked, make
from visionattn.predict.pictures import collect
from visionattn.training import checkpoint
from visionattn.training.errors import UserError
from visionattn.training.options import plain
from visionattn.training.shapes import CLASSES, draw_scene
from visionattn.training.trained import Choice, locate, running

config = pytest.importorskip("visionattn.detection.config", reason="needs visionattn.detection")
network = pytest.importorskip("visionattn.detection.network", reason="needs visionattn.detection")
BODY = dict(stem_stride=4, dims=[16, 16, 16, 16], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])


@pytest.fixture(scope="module", params=["fcos", "maskrcnn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves of a detector that is sure of many things, none of them true."""
    options = config.DetConfig()
    options.model.detector, options.model.kwargs, options.model.fpn_channels = request.param, BODY, 64
    options.data.short_side = options.data.long_side = 64
    few = dict(box_score_thresh=0.0, rpn_post_nms_top_n_test=20, box_detections_per_img=15)
    options.model.detector_kwargs = dict(score_thresh=0.0) if request.param == "fcos" else few
    detector, _ = network.create_detector(options, list(CLASSES))
    state = dict(step=3, best=0.0, config=plain(options), model="gna_nano", kwargs=BODY, classes=list(CLASSES),
                 detector=request.param)  # fmt: skip
    weights = detector.state_dict()
    folder = tmp_path_factory.mktemp("det") / "run"
    checkpoint.save(folder / "checkpoints", checkpoint.Checkpoint(weights, weights, {}, state), best=True)
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, size in enumerate(((64, 64), (50, 70))):
        path = tmp_path / "in" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(i, "test", size=size, objects=2, object_scale=(0.2, 0.3)).image).save(path)
    return tmp_path


def test_objects_are_those_of_the_detector_above_the_threshold(run: Path, pictures: Path) -> None:
    predictor = make(str(run), Choice(), Asked(threshold=0.02), running("cpu", "fp32"))
    names = collect(["in"])
    images = [Image.open(one.path) for one in names]
    with torch.no_grad():
        expected = predictor.network([pil_to_tensor(image) for image in images])
    some = 0
    for answer, found in zip(predictor(names, images), expected):
        sure = found["scores"][found["scores"] >= 0.02].sort(descending=True).values
        torch.testing.assert_close(answer.found["scores"], sure)
        assert len(answer.record()["objects"]) == len(sure) == len(answer.found["boxes"])
        some += len(sure)
    assert some > 0


def test_the_command_writes_objects_and_pictures(run: Path, pictures: Path) -> None:
    assert main([str(run), "in", "--out", "out", "--threshold", "0.02", "--device", "cpu"]) == 0
    found = json.loads(Path("out/predictions.json").read_text())
    assert found["kind"] == "detection" and [one["file"] for one in found["images"]] == ["in/0.png", "in/1.png"]
    first = found["images"][0]["objects"][0]
    assert first["class"] == CLASSES[first["index"]] and len(first["box"]) == 4
    for name in ("0.png.png", "1.png.png", "sheet.png"):
        assert Image.open(Path("out") / name).size[1] > 150


def test_what_a_detector_does_not_take_is_one_line(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "in", "--crop-pct", "0.9", "--device", "cpu"]) == 2
    assert "--crop-pct is for other models" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a detector; only visionattn predict takes those"):
        locate(str(run), Choice())
    file = (run / "checkpoints" / "last").resolve() / "ema.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    try:
        assert main([str(run), "in", "--device", "cpu"]) == 2
    finally:
        file.write_bytes(whole)
    assert "ema.safetensors cannot be read" in capsys.readouterr().err
