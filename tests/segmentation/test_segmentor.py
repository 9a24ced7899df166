"""The segmentor under ``torch.compile``: backbone and heads while training, nothing in evaluation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("plugin")
SMALL = ["model.backbone.drop_path=0.0", *(f"model.{head}_head.{option}" for head in ("decode", "auxiliary")
         for option in ("channels=8", "dropout_ratio=0.0"))]  # fmt: skip


def make(*settings: str) -> nn.Module:
    from mmseg.registry import MODELS

    from visionattn.segmentation.options import override, read_config

    config = read_config(Path("segmentation/upernet_gna_nano_camvid.py"))
    override(config, [*SMALL, *settings])
    torch.manual_seed(0)
    return MODELS.build(config.model)


def batch(side: int = 64) -> tuple[torch.Tensor, list]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, side, side))))
        sample.set_metainfo(dict(img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side)))
        samples.append(sample)
    return torch.randn(2, 3, side, side), samples


def losses(model: nn.Module, images: torch.Tensor, samples: list) -> torch.Tensor:
    return sum(value for name, value in model(images, samples, "loss").items() if "loss" in name)


def test_backbone_and_heads_are_compiled_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Callable, dict]] = []

    def stand_in(function: Callable, **how: object) -> Callable:
        compiled.append((function, how))
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    model = make("model.backbone.compile=true", "model.backbone.compile_mode=reduce-overhead")
    keys = set(model.state_dict())
    images, samples = batch()
    model.eval()(images, samples, "predict")
    assert not compiled
    for _ in range(2):
        losses(model.train(), images, samples).backward()
    assert len(compiled) == 3 and all(how == dict(mode="reduce-overhead", dynamic=False) for _, how in compiled)
    assert keys == set(make().state_dict())


@pytest.mark.slow
def test_compiled_it_has_the_losses_and_gradients_of_eager() -> None:
    plain, compiled = make().train(), make("model.backbone.compile=true").train()
    images, samples = batch()
    first, second = (losses(model, images, samples) for model in (plain, compiled))
    torch.testing.assert_close(first, second)
    first.backward(), second.backward()
    for (name, expected), found in zip(plain.named_parameters(), compiled.parameters()):
        # in front of a batch norm a bias has no gradient, but for rounding
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)
