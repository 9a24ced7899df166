"""Detectors: built on any pyramid, trained in parts, started from weights of many kinds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from visionattn.detection.network import BODY, create_detector
from visionattn.training import checkpoint, network
from visionattn.training.checkpoint import Checkpoint
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError
from visionattn.training.optim import create_optimizer
from visionattn.training.options import parse

CLASSES = ["a", "b", "c"]
FEW = "{box_batch_size_per_image: 8, rpn_post_nms_top_n_train: 20, rpn_post_nms_top_n_test: 10}"


def make(tiny: Callable, detector: str = "fcos", *argv: object, classes: list[str] = CLASSES) -> nn.Module:
    more = ["--model.detector_kwargs", FEW] if detector in ("maskrcnn", "fasterrcnn") else []
    return create_detector(tiny("--model.detector", detector, *more, *argv), classes)[0]


def sample(boxes: int = 2) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images = [torch.randint(0, 255, size, dtype=torch.uint8) for size in ((3, 64, 80), (3, 70, 64))]
    target = dict(boxes=torch.tensor([[5.0, 5, 40, 44], [30, 8, 60, 60]])[:boxes], labels=torch.tensor([2, 0])[:boxes])
    masks = [torch.ones(boxes, *image.shape[1:], dtype=torch.uint8) for image in images]
    return images, [dict(target, masks=mask) for mask in masks]


@pytest.mark.parametrize("detector", ["fcos", "retinanet", "fasterrcnn", "maskrcnn"])
def test_every_detector_trains_all_its_weights_and_finds_objects_in_the_pixels_of_any_image(
    tiny: Callable, detector: str
) -> None:
    model = make(tiny, detector).train()
    losses = model(*sample())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    images, negatives = sample(boxes=0)
    assert all(bool(x.isfinite()) for x in model(images, negatives).values())
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    with torch.no_grad():
        found = model.eval()(images)
    for image, one in zip(images, found):
        assert len(one["boxes"]) and set(one["labels"].tolist()) <= {0, 1, 2}
        assert (one["boxes"] >= 0).all() and (one["boxes"][:, 2] <= image.shape[2]).all()
        assert (one["boxes"][:, 3] <= image.shape[1]).all()
        if detector == "maskrcnn":
            assert one["masks"].shape[1:] == (1, *image.shape[1:])


@pytest.mark.parametrize("detector", ["fcos", "maskrcnn"])
def test_losses_under_bfloat16_are_float32_and_near_those_without(tiny: Callable, detector: str) -> None:
    model, (images, targets) = make(tiny, detector).train(), sample()
    torch.manual_seed(0)
    exact = model(images, targets)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, targets)
    assert all(x.dtype == torch.float32 for x in rough.values())
    assert float(sum(rough.values())) == pytest.approx(float(sum(exact.values())), rel=0.05)


def test_frozen_stages_keep_weights_and_statistics(tiny: Callable) -> None:
    model = make(tiny, "fcos", "--model.frozen_stages", 2, "--model.drop_path", 0.5).train()
    inner = model.body.model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith((f"{BODY}stem", f"{BODY}stages.0", f"{BODY}stages.1"))
    }
    assert not inner.stages[1].training and inner.stages[2].training
    with pytest.raises(UserError, match="model.frozen_stages is 9; it must be at most 4"):
        make(tiny, "fcos", "--model.frozen_stages", 9)


def test_layer_decay_scales_the_backbone_from_top_to_stem_and_nothing_else(tiny: Callable) -> None:
    config = tiny("--optim.layer_decay", 0.5)
    model = create_detector(config, CLASSES)[0]
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in create_optimizer(config, model).param_groups for p in g["params"]}
    blocks = [scales[f"{BODY}stages.{i}.blocks.0.mlp.fc1.weight"] for i in range(4)]
    assert scales[f"{BODY}stem.conv1.weight"] < blocks[0] < blocks[1] < blocks[2] < blocks[3] <= 1
    assert {scale for name, scale in scales.items() if not name.startswith(BODY)} == {1.0}
    decayed = {
        names[id(p)] for g in create_optimizer(config, model).param_groups if g["weight_decay"] for p in g["params"]
    }
    assert not [name for name in decayed if name.endswith((".bias", ".rpb"))]


@pytest.fixture
def classifier(tmp_path: Path, backbone: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """The checkpoint of a classifier, and its weights."""
    config = parse(TrainConfig, ["--model.kwargs", backbone, "--run.seed", "5"], "test", "")
    weights = network.create_model(config, list("vwxyz")).state_dict()
    state = dict(step=1, best=0.0, config={}, classes=list("vwxyz"))
    checkpoint.save(tmp_path / "run" / "checkpoints", Checkpoint(weights, {}, {}, state))
    return tmp_path / "run", weights


def test_a_backbone_comes_from_a_classifier_or_from_another_detector(
    tiny: Callable, classifier: tuple, tmp_path: Path, backbone: str
) -> None:
    run, weights = classifier
    own = make(tiny, "fcos", "--model.backbone_checkpoint", run).state_dict()
    body = {name.removeprefix(BODY): x for name, x in own.items() if name.startswith(BODY)}
    assert len(body) > 20 and all(torch.equal(x, weights[name]) for name, x in body.items())
    state = dict(step=1, best=0.0, config={}, classes=CLASSES)
    checkpoint.save(tmp_path / "det" / "checkpoints", Checkpoint(own, {}, {}, state))
    again = make(tiny, "retinanet", "--model.backbone_checkpoint", tmp_path / "det").state_dict()
    assert all(torch.equal(again[name], x) for name, x in own.items() if name.startswith(BODY))
    deeper = ["--model.kwargs", backbone.replace("[1, 1, 1, 1]", "[1, 1, 2, 1]")]
    for path, message in ((run, "does not fit model.name gna_nano"), (tmp_path / "det", "is of another backbone")):
        with pytest.raises(UserError, match=message):
            make(tiny, "fcos", "--model.backbone_checkpoint", path, *deeper)


def test_a_detector_is_fine_tuned_and_gets_new_layers_for_other_categories(tiny: Callable, tmp_path: Path) -> None:
    weights = make(tiny, "fasterrcnn", "--run.seed", 9).state_dict()
    run = tmp_path / "run"
    checkpoint.save(
        run / "checkpoints", Checkpoint(weights, {}, {}, dict(step=1, best=0.0, config={}, classes=CLASSES))
    )
    more = ["--model.detector", "fasterrcnn", "--model.detector_kwargs", FEW, "--model.checkpoint", run]
    model, notes = create_detector(tiny(*more), CLASSES)
    assert not notes and all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    for classes in (["a", "b"], ["a", "b", "x"]):
        model, notes = create_detector(tiny(*more), classes)
        assert len(notes) == 1 and "was trained on 3 categories (a, b, c, ...)" in notes[0]
        assert "drawn anew: net.roi_heads.box_predictor.bbox_pred, net.roi_heads.box_predictor.cls_score" in notes[0]
        for name, x in model.state_dict().items():
            assert name.startswith("net.roi_heads.box_predictor") or torch.equal(x, weights[name])
    with pytest.raises(UserError, match="is of another detector|does not fit this detector"):
        create_detector(tiny("--model.checkpoint", run), CLASSES)


def test_maps_of_timm_that_lie_the_other_way_round_fit(tiny: Callable) -> None:
    kwargs = "{img_size: 64, window_size: 2, embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]"
    kwargs += ", strict_img_size: false}"
    model = make(tiny, "fcos", "--model.name", "swin_tiny_patch4_window7_224", "--model.kwargs", kwargs).train()
    assert all(bool(x.isfinite()) for x in model(*sample()).values())


@pytest.mark.parametrize(("argv", "message"), [
    (["--model.name", "gna_nana"], "model.name is 'gna_nana', which timm does not know"),
    (["--model.name", "inline_deit_tiny", "--model.kwargs", "{}"], "whose maps have the strides .*must get coarser"),
    (["--model.detector_kwargs", "{speed: 3}"], "model.detector_kwargs: fcos has no argument 'speed'"),
    (["--model.checkpoint", "nowhere"], "checkpoint nowhere does not exist"),
])  # fmt: skip
def test_what_cannot_be_built_is_one_line(tiny: Callable, argv: list, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(tiny, "fcos", *argv)
    assert "\n" not in str(error.value)
