"""The Swin+VSA variants: the official logits, parameters, checkpoints, sizes of images, graphs."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.vsa import checkpoint_filter_fn

PUBLISHED = {"tiny": 28779274, "small": 50549338, "base": 89243776}  # the official constructors'
SHORT = {"dims": (32, 64), "depths": (2, 1), "num_heads": (1, 2), "num_classes": 7}


@pytest.mark.parametrize("boosted", [False, True], ids=["plain", "boosted"])
def test_the_official_checkpoint_gives_the_official_logits(boosted, golden, tmp_path, caplog):
    figures = golden("swin_vsa_tiny")
    torch.save({"model": figures.state_dict(boosted) | figures.buffers()}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            "vsa_swin_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth"))
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_official_ones(size):
    model = timm.create_model(f"vsa_swin_{size}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[size]


def test_pretrained_without_weights_is_a_clear_error():
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights exist for vsa_swin_tiny"):
        timm.create_model("vsa_swin_tiny", pretrained=True, device="meta")


def _short(**kwargs):
    """A small one whose windows look elsewhere than at themselves."""
    torch.manual_seed(0)
    model = timm.create_model("vsa_swin_tiny", **{**SHORT, **kwargs})
    for name, p in model.named_parameters():
        if ".places." in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


def test_a_new_draw_of_the_weights_starts_windows_at_themselves():
    model = _short()
    model.init_weights()
    assert not any(p.any() for name, p in model.named_parameters() if ".places." in name)
    assert all(p.any() for name, p in model.named_parameters() if name.endswith(("table", "pos.proj.weight")))


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 90), (57, 64)])
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(size):
    model = _short()
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_tables_are_resized_for_another_window():
    source, model = _short(), _short(window_size=(6, 9))
    for name, p in source.named_parameters():
        if name.endswith("table"):  # a table that falls off with the distance, along both axes
            n = torch.arange(-6.0, 7)
            p.data = -(n[:, None].abs() + 2 * n[None].abs()).flatten()[:, None].expand(p.shape).clone()
    model.load_state_dict(checkpoint_filter_fn(source.state_dict(), model))
    for name, p in model.named_parameters():
        if name.endswith("table"):
            table = p[:, 0].unflatten(0, (11, 17))
            assert table[5, 8].abs() < 1e-5 and table.argmax() == 5 * 17 + 8
            assert (table[5, 8:].diff() < 0).all() and (table[5:, 8].diff() < 0).all()


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "fused_swin_tiny", "vsa_swin_small"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match=r"checkpoint is not one of this Swin\+VSA variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("vsa_swin_tiny", device="meta"))


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="window_sizes"):
        _short(window_sizes=7)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model = _short(drop_path_rate=0.0, dims=(32,), depths=(1,), num_heads=(1,)).double()
    eager, compiled = compiled_whole(model, torch.randn(2, 3, 57, 64, dtype=torch.float64), backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    model = _short(dims=(32,), depths=(1,), num_heads=(1,)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
