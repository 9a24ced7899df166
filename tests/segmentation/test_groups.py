"""Learning rates by layer and weight decay, for models that mmsegmentation's own constructors do not know."""

import pytest
from torch import nn

from visionattn.training.errors import UserError

pytestmark = pytest.mark.usefixtures("plugin")
NARROW = dict(stem_stride=4, dims=(16, 16, 32, 32), depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2))


def segmentor(name: str, **kwargs) -> nn.Module:
    from visionattn.segmentation.backbone import VisionAttnBackbone

    model = nn.Module()
    model.backbone = VisionAttnBackbone(name, kwargs=kwargs)
    model.decode_head = nn.Conv2d(8, 3, 1)
    return model


def grouped(model: nn.Module, **options) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) of each parameter."""
    from visionattn.segmentation.groups import LayerDecayConstructor

    optimizer = dict(type="AdamW", lr=1.0, weight_decay=0.1)
    constructor = LayerDecayConstructor(dict(type="OptimWrapper", optimizer=optimizer), options)
    name_of = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in constructor(model).optimizer.param_groups:
        for parameter in group["params"]:
            assert name_of[id(parameter)] not in found
            found[name_of[id(parameter)]] = group["lr"], group["weight_decay"]
    return found


def test_rates_fall_block_by_block_towards_the_stem() -> None:
    model = segmentor("gna_nano", **NARROW)
    found = grouped(model, layer_decay=0.5)
    assert set(found) == {name for name, _ in model.named_parameters()}
    # the stem and five blocks; a downsampler goes with the first block of its stage
    layer = {"stem": 0, "stages.0.blocks.0": 1, "stages.1.downsample": 2, "stages.1.blocks.0": 2}
    layer |= {"stages.1.blocks.1": 3, "stages.2.blocks.0": 4, "stages.3.downsample": 5, "stages.3.blocks.0": 5}
    for part, number in layer.items():
        rates = {rate for name, (rate, _) in found.items() if name.startswith(f"backbone.features.model.{part}")}
        assert rates == {0.5 ** (6 - number)}, part
    assert {rate for name, (rate, _) in found.items() if ".norms." in name or "head" in name} == {1.0}


def test_timm_s_own_models_have_layers_too() -> None:
    found = grouped(segmentor("resnet18"), layer_decay=0.5)
    assert found["backbone.features.conv1.weight"][0] < found["backbone.features.layer1.0.conv1.weight"][0]
    assert found["backbone.features.layer4.1.conv2.weight"][0] == 0.5


def test_vectors_and_what_the_model_names_take_no_weight_decay() -> None:
    model = segmentor("gna_nano", **NARROW)
    spared = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    assert any(name.endswith("rpb") for name in spared)
    for name, (rate, decay) in grouped(model, head_lr_mult=10.0).items():
        assert decay == (0.0 if dict(model.named_parameters())[name].ndim == 1 or name in spared else 0.1), name
        assert rate == (10.0 if name.startswith("decode_head") else 1.0)


def test_frozen_parameters_are_left_out() -> None:
    model = segmentor("gna_nano", **NARROW)
    model.decode_head.requires_grad_(False)
    assert not [name for name in grouped(model) if name.startswith("decode_head")]


@pytest.mark.parametrize("options", [dict(layer_decays=0.9), dict(layer_decay=1.5), dict(layer_decay=0.0)])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match="optim_wrapper.paramwise_cfg"):
        grouped(segmentor("gna_nano", **NARROW), **options)
