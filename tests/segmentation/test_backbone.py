"""Pyramids as backbones of mmsegmentation: their maps, weights, what is frozen, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from visionattn.training import checkpoint
from visionattn.training.errors import UserError

pytestmark = pytest.mark.usefixtures("plugin")
NARROW = dict(stem_stride=4, dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
SMALL_SWIN = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), strict_img_size=False)
PEERS = {
    "gna_nano": dict(kwargs=NARROW),
    "resnet18": dict(),
    "swin_tiny_patch4_window7_224": dict(kwargs=SMALL_SWIN),
}


def make(name: str, **more: Any) -> nn.Module:
    from visionattn.segmentation.backbone import VisionAttnBackbone

    return VisionAttnBackbone(name, **{**PEERS[name], **more})


@pytest.mark.parametrize("name", PEERS)
def test_any_pyramid_of_timm_gives_four_normed_maps_in_nchw(name: str) -> None:
    backbone = make(name).eval()
    size = (64, 100) if "swin" in name else (61, 99)
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *size))
    places = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape) for x in maps] == [(2, dim, *place) for dim, place in zip(backbone.channels, places)]
    for x in maps:  # a fresh LayerNorm over channels
        assert x.mean(1).abs().max() < 1e-4
        assert (x.var(1, unbiased=False) - 1).abs().max() < 0.05


@pytest.mark.parametrize("name", PEERS)
def test_without_norms_the_maps_are_those_of_timm(name: str) -> None:
    backbone = make(name, out_norm=False).eval()
    out = dict(out_indices=(1, 2, 3, 4)) if name == "resnet18" else {}
    own = timm.create_model(name, features_only=True, **out, **PEERS[name].get("kwargs", {})).eval()
    own.load_state_dict(backbone.features.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(backbone(x), own(x)):
            assert torch.equal(ours, theirs.permute(0, 3, 1, 2) if "swin" in name else theirs)


def a_run(folder: Path, model: nn.Module, classes: list[str]) -> Path:
    """What ``visionattn train`` leaves of this model."""
    state = dict(step=7, best=0.0, config={}, classes=classes)
    checkpoint.save(folder / "checkpoints", checkpoint.Checkpoint(model.state_dict(), {}, {}, state))
    return folder


HEADS = {
    "gna_nano": {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"},
    "resnet18": {"fc.weight", "fc.bias"},
    "swin_tiny_patch4_window7_224": {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"},
}


@pytest.mark.parametrize("name", PEERS)
def test_a_training_run_loads_by_one_option_and_the_keys_are_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = timm.create_model(name, num_classes=3, **PEERS[name].get("kwargs", {}))
    backbone = make(name, checkpoint=str(a_run(tmp_path / "run", whole, ["a", "b", "c"])))
    before = {key: value.clone() for key, value in backbone.features.state_dict().items()}
    backbone.init_weights()
    assert backbone.loaded.missing == [] and set(backbone.loaded.unexpected) == HEADS[name]
    assert "3 classes" in str(backbone.loaded) and "missing keys: none; unexpected keys: " in str(backbone.loaded)
    after = backbone.features.state_dict()
    assert not torch.equal(next(iter(before.values())), next(iter(after.values())))
    theirs = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    assert all(torch.equal(x, theirs[key.removeprefix("model.").replace(".", "_")]) for key, x in after.items())


def test_a_file_without_names_of_classes_loads_too(tmp_path: Path) -> None:
    whole = timm.create_model("gna_nano", num_classes=5, **NARROW)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone = make("gna_nano", checkpoint=str(tmp_path / "w.pth"))
    backbone.init_weights()
    assert backbone.loaded.missing == [] and set(backbone.loaded.unexpected) == HEADS["gna_nano"]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", timm.create_model("resnet18", num_classes=3), ["a", "b", "c"])
    with pytest.raises(UserError, match="does not fit model.backbone.name gna_nano"):
        make("gna_nano", checkpoint=str(run)).init_weights()
    with pytest.raises(UserError, match="published weights of gna_nano cannot be had"):
        make("gna_nano", pretrained=True).init_weights()


@pytest.mark.parametrize("name", PEERS)
def test_frozen_stages_do_not_change_and_the_others_do(name: str) -> None:
    backbone = make(name, frozen_stages=2, **({} if name == "resnet18" else {"drop_path": 0.9})).train()
    frozen = {key for key, p in backbone.features.named_parameters() if not p.requires_grad}
    stage = {"gna_nano": "model.stages.{}.", "resnet18": "layer{}.", "swin_tiny_patch4_window7_224": "layers_{}."}[name]
    first = 1 if name == "resnet18" else 0
    for number, is_frozen in enumerate((True, True, False, False)):
        keys = {key for key, _ in backbone.features.named_parameters() if key.startswith(stage.format(number + first))}
        assert keys and keys <= frozen if is_frozen else keys and not keys & frozen
    before = {key: value.clone() for key, value in backbone.features.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    x = torch.randn(4, 3, 64, 64)
    one, two = backbone(x), backbone(x)
    assert torch.equal(one[1], two[1])  # no stochastic depth in what is frozen
    sum(value.square().sum() for value in one[2:]).backward()
    optimizer.step()
    for key, value in backbone.features.state_dict().items():
        inside = key.startswith((stage.format(first), stage.format(first + 1))) or key in frozen
        assert not inside or torch.equal(value, before[key]), key
    assert any(not torch.equal(p, before[key]) for key, p in backbone.features.named_parameters() if key not in frozen)


def test_stochastic_depth_and_gradient_checkpointing_reach_the_model() -> None:
    backbone = make("gna_nano", drop_path=0.4, grad_checkpointing=True)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4)
    assert all(stage.grad_checkpointing for stage in backbone.features.model.stages)


def test_it_is_compiled_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stand_in(function, **how):
        return lambda x: calls.append(how) or function(x)

    monkeypatch.setattr(torch, "compile", stand_in)
    backbone = make("gna_nano", compile=True, compile_mode="reduce-overhead")
    keys = set(backbone.state_dict())
    x = torch.randn(1, 3, 32, 32)
    backbone.eval()(x)
    assert not calls
    backbone.train()(x)
    assert calls == [{"mode": "reduce-overhead", "dynamic": False}] and set(backbone.state_dict()) == keys


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(name="gna_nanoo"), "backbone name is 'gna_nanoo', which timm does not know; for example: gna_"),
        (dict(name="gna_nano", kwargs=dict(widths=3)), "backbone gna_nano cannot be built: .*widths"),
        (dict(name="gna_nano", frozen_stages=9), "frozen_stages is 9; gna_nano has stages 1 to 4"),
        (dict(name="gna_nano", checkpoint="x", pretrained=True), "either checkpoint or pretrained"),
    ],
)
def test_what_cannot_be_is_refused(more: dict, message: str) -> None:
    from visionattn.segmentation.backbone import VisionAttnBackbone

    with pytest.raises(UserError, match=message):
        VisionAttnBackbone(**more)
