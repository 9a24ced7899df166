"""The pyramids as encoders of segmentation_models_pytorch, by the names that it gives to timm's models."""

import pytest
import torch

import visionattn  # noqa: F401  registers the models

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation_models_pytorch")


@pytest.mark.parametrize("name", ["tu-gna_nano", pytest.param("tu-gna_tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("decoder", ["Unet", "FPN"])
def test_a_pyramid_is_an_encoder(name: str, decoder: str) -> None:
    model = getattr(smp, decoder)(name, encoder_weights=None, classes=5)
    out = model(torch.randn(2, 3, 64, 96))
    assert out.shape == (2, 5, 64, 96)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
