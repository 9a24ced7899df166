"""The DaViT variants against timm's, with the same weights: maps, logits, gradients, checkpoints, sizes of images."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.layers import ChannelAttention, WindowAttention
from visionattn.models.davit import checkpoint_filter_fn

VARIANTS = ("tiny", "small", "base", "large")
PUBLISHED = {"tiny": 28360168, "small": 49745896, "base": 87954408, "large": 196811752}  # the official constructors'
SHORT = {"dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "num_classes": 7}


def _timms(size, filled, **kwargs):
    """timm's model with weights at a scale at which each of them shows."""
    model = timm.create_model(f"davit_{size}", **kwargs).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(filled(name, p.shape))
    return model


def _ours(theirs, size, **kwargs):
    model = timm.create_model(f"fused_davit_{size}", **kwargs).eval()
    state_dict = checkpoint_filter_fn(theirs.state_dict(), model)
    assert state_dict.keys() == model.state_dict().keys()
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize("img_size", [pytest.param((224, 224), marks=pytest.mark.slow), (97, 250)], ids=str)
def test_tiny_gives_timms_maps_logits_and_gradients(img_size, filled):
    # in float64: sums over whole maps make the softmax steep, and gradients in float32 noisy on both sides
    theirs = _timms("tiny", filled).double()
    ours = _ours(theirs, "tiny").double()
    x = torch.randn(1, 3, *img_size, dtype=torch.float64)
    final, maps = ours.forward_intermediates(x)
    expected, their_maps = theirs.forward_intermediates(x)
    assert len(maps) == len(their_maps) == 4
    torch.testing.assert_close(maps, their_maps)
    logits, their_logits = ours.forward_head(final), theirs.forward_head(expected)
    torch.testing.assert_close(logits, their_logits)
    grad = torch.randn_like(logits)
    logits.backward(grad)
    their_logits.backward(grad)
    gradients = checkpoint_filter_fn({n: p.grad for n, p in theirs.named_parameters()}, ours)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("size", VARIANTS[1:])
def test_the_others_give_timms_maps_and_logits(size, filled):
    theirs = _timms(size, filled).double()  # as above
    ours = _ours(theirs, size).double()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        (final, maps), (expected, their_maps) = (m.forward_intermediates(x) for m in (ours, theirs))
        torch.testing.assert_close(maps, their_maps)
        torch.testing.assert_close(ours.forward_head(final), theirs.forward_head(expected))


@pytest.mark.parametrize("size", VARIANTS)
def test_parameters_are_timms_and_the_official_ones(size):
    ours, theirs = (timm.create_model(f"{name}_{size}", device="meta") for name in ("fused_davit", "davit"))
    assert sum(p.numel() for p in ours.parameters()) == PUBLISHED[size]
    renamed = checkpoint_filter_fn(theirs.state_dict(), ours)
    assert {n: p.shape for n, p in renamed.items()} == {n: p.shape for n, p in ours.state_dict().items()}


def test_the_official_checkpoint_gives_the_official_logits(golden, tmp_path, caplog):
    figures = golden("davit_tiny")  # three cases: a square one, one whose maps are padded, a batch
    torch.save({"state_dict": figures.state_dict(boosted=False)}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            "fused_davit_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth"))
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted=False)


def test_timms_weights_are_named_with_their_licence():
    for size in VARIANTS[:3]:
        cfg, theirs = (timm.get_pretrained_cfg(f"{name}_{size}.msft_in1k") for name in ("fused_davit", "davit"))
        assert cfg.hf_hub_id == f"timm/davit_{size}.msft_in1k" and cfg.license == "mit"
        for key in ("num_classes", "input_size", "mean", "std", "crop_pct", "interpolation"):
            assert getattr(cfg, key) == getattr(theirs, key), key
        assert timm.list_models(f"fused_davit_{size}.*", pretrained=True)
    assert timm.list_models("davit_tiny.*", pretrained=True), "timm's own configurations are gone"


def test_pretrained_without_weights_is_a_clear_error():
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights exist for fused_davit_large"):
        timm.create_model("fused_davit_large", pretrained=True, device="meta")


def _short(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("fused_davit_tiny", **{**SHORT, **kwargs})


def test_blocks_take_turns_and_stochastic_depth_rises_over_all_of_them():
    model = timm.create_model("fused_davit_tiny", device="meta", drop_path_rate=0.11)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [type(block.attn) for block in blocks] == [WindowAttention, ChannelAttention] * 6
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 90), (57, 64)])
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(size):
    model = _short()
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_maps_round_up_and_stay_channels_last(stride):
    maps = _short(stem_stride=stride).forward_intermediates(torch.randn(2, 3, 33, 26), intermediates_only=True)
    first = [-(-n // stride) for n in (33, 26)]
    assert [tuple(x.shape) for x in maps] == [(2, 32, *first), (2, 64, *(-(-n // 2) for n in first))]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "fused_swin_tiny", "davit_small", "davit_base_fl"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this DaViT variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("fused_davit_tiny", device="meta"))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"window_sizes": 7}, TypeError, "window_sizes"),
        ({"stem_stride": 8}, ValueError, r"stem_stride must lie in 1..7, got 8"),
        ({"num_heads": (3, 2)}, ValueError, "dim must be a multiple of num_heads, got dim 32 and num_heads 3"),
    ],
)
def test_bad_argument_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        _short(**kwargs)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model, x = _short(drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    model = _short(dims=(32,), depths=(1,), num_heads=(1,)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
