"""The Swin variants against timm's, with the same weights: maps, logits, gradients, checkpoints, sizes of images."""

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch.nn.functional import pad

import visionattn  # noqa: F401
from visionattn.models.swin import checkpoint_filter_fn

VARIANTS = ("tiny", "small", "base", "large")
THEIRS = "swin_{}_patch4_window7_224"
SHORT = {"dims": (32, 64), "depths": (2, 1), "num_heads": (1, 2), "num_classes": 7}


def _timms(size, filled, **kwargs):
    """timm's model with weights at a scale at which each of them shows, tables above all."""
    model = timm.create_model(THEIRS.format(size), **kwargs).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(filled(name, p.shape, full_scale=name.endswith("table")))
    return model


def _ours(theirs, size, **kwargs):
    model = timm.create_model(f"fused_swin_{size}", **kwargs).eval()
    state_dict = checkpoint_filter_fn(theirs.state_dict(), model)
    assert state_dict.keys() == model.state_dict().keys()
    model.load_state_dict(state_dict)
    return model


def _padding_first(self, x, original=SwinTransformerBlock._attn):
    """timm's attention on a map that is padded already: the official order, where timm would roll first."""
    (window_h, window_w), (_, height, width, _) = self.window_size, x.shape
    x = pad(x, (0, 0, 0, -width % window_w, 0, -height % window_h))
    return original(self, x)[:, :height, :width]


@pytest.mark.parametrize("img_size", [(224, 224), (230, 261), (448, 224)], ids=str)
def test_tiny_gives_timms_maps_logits_and_gradients(img_size, filled, agree, monkeypatch):
    odd = img_size == (230, 261)
    if odd:
        monkeypatch.setattr(SwinTransformerBlock, "_attn", _padding_first)
    padded = tuple(-(-n // 4) * 4 for n in img_size)
    options = dict(img_size=padded, dynamic_img_size=True) if odd else dict(img_size=img_size)
    theirs = _timms("tiny", filled, **options)
    ours = _ours(theirs, "tiny")
    x = torch.randn(1, 3, *img_size)
    x_padded = pad(x, (0, padded[1] - img_size[1], 0, padded[0] - img_size[0]))
    final, maps = ours.forward_intermediates(x)
    expected, their_maps = theirs.forward_intermediates(x_padded)
    assert len(maps) == len(their_maps) == 4
    for stage, (found, theirs_) in enumerate(zip(maps, their_maps)):
        agree(found, theirs_, f"stage {stage}")
    logits, their_logits = ours.forward_head(final), theirs.forward_head(expected)
    agree(logits, their_logits, "logits")
    if img_size == (448, 224):
        return
    grad = torch.randn_like(logits)
    logits.backward(grad)
    their_logits.backward(grad)
    gradients = checkpoint_filter_fn({n: p.grad for n, p in theirs.named_parameters()}, ours)
    for name, p in ours.named_parameters():
        agree(p.grad, gradients[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("size", VARIANTS[1:])
def test_the_others_give_timms_maps_and_logits(size, filled, agree):
    theirs = _timms(size, filled)
    ours = _ours(theirs, size)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps, their_maps = (m.forward_intermediates(x, intermediates_only=True) for m in (ours, theirs))
        for stage, pair in enumerate(zip(maps, their_maps)):
            agree(*pair, f"stage {stage}")
        agree(ours(x), theirs(x), "logits")


@pytest.mark.parametrize("size", VARIANTS)
def test_parameters_are_timms(size):
    ours = timm.create_model(f"fused_swin_{size}", device="meta")
    theirs = timm.create_model(THEIRS.format(size), device="meta")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    renamed = checkpoint_filter_fn(theirs.state_dict(), ours)
    assert {n: p.shape for n, p in renamed.items()} == {n: p.shape for n, p in ours.state_dict().items()}


@pytest.mark.parametrize("boosted", [False, True], ids=["plain", "boosted"])
def test_the_official_checkpoint_gives_the_official_logits(boosted, golden, tmp_path, caplog):
    figures = golden("swin_tiny")
    torch.save({"model": figures.state_dict(boosted) | figures.buffers()}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            "fused_swin_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth"))
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted)


def test_timms_weights_are_named_with_their_licence():
    for size in VARIANTS:
        cfg = timm.get_pretrained_cfg(f"fused_swin_{size}")
        assert cfg.hf_hub_id.startswith(f"timm/swin_{size}_patch4_window7_224.ms_in") and cfg.license == "mit"
        assert timm.get_pretrained_cfg(cfg.hf_hub_id.removeprefix("timm/")) is not None, "timm has no such weights"
        assert timm.list_models(f"fused_swin_{size}.*", pretrained=True)
    assert timm.get_pretrained_cfg("fused_swin_base.ms_in22k").num_classes == 21841
    assert timm.list_models("swin_tiny_patch4_window7_224.*", pretrained=True), "timm's own configurations are gone"


def _short(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("fused_swin_tiny", **{**SHORT, **kwargs})


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


@pytest.mark.parametrize("window", [8, 12, (6, 9)])
def test_tables_are_resized_for_another_window(window):
    source = _short()
    for name, p in source.named_parameters():
        if name.endswith("table"):  # a table that falls off with the distance, along both axes
            n = torch.arange(-6.0, 7)
            p.data = -(n[:, None].abs() + 2 * n[None].abs()).flatten()[:, None].expand(p.shape).clone()
    model = _short(window_size=window)
    model.load_state_dict(checkpoint_filter_fn(source.state_dict(), model))
    h, w = window if isinstance(window, tuple) else (window, window)
    for name, p in model.named_parameters():
        if name.endswith("table"):
            table = p[:, 0].unflatten(0, (2 * h - 1, 2 * w - 1))
            assert table[h - 1, w - 1].abs() < 1e-5 and table.argmax() == (h - 1) * (2 * w - 1) + w - 1
            assert (table[h - 1, w - 1 :].diff() < 0).all() and (table[h - 1 :, w - 1].diff() < 0).all()
            torch.testing.assert_close(table, table.flip(0, 1), rtol=0, atol=1e-4)


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "gna_nano", "swinv2_tiny_window8_256", "swin_small_patch4_window7_224"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this Swin variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("fused_swin_tiny", device="meta"))


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="window_sizes"):
        _short(window_sizes=7)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model, x = _short(drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow  # half a minute; gna's export runs always
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    model = _short(dims=(32,), depths=(2,), num_heads=(1,)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
