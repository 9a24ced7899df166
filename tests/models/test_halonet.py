"""The HaloNet variants against timm's, with the same weights, and the paper's: maps, logits, gradients, checkpoints."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.halonet import TABLE, checkpoint_filter_fn

TIMMS = ("halonet_h1", "halonet26t", "halonet50ts")
NAMES = [f"fused_halonet_{name}" for name in TABLE] + ["fused_halonet26t", "fused_halonet50ts"]
# both kinds of blocks, and attention that shrinks the map
SHORT = {
    "dims": (32, 64),
    "depths": (1, 2),
    "mid_dims": (16, 32),
    "halos": ((), None),
    "num_heads": (2, 2),
    "block_size": 4,
    "halo_size": 1,
    "num_classes": 7,
}


def _timms(name, filled):
    """timm's model with weights at a scale at which each of them shows, tables above all."""
    model = timm.create_model(name).eval()
    state_dict = model.state_dict()
    floats = {
        n: filled(n, t.shape, full_scale=n.endswith("_rel")) for n, t in state_dict.items() if t.dtype.is_floating_point
    }
    model.load_state_dict(state_dict | floats)
    return model


def _ours(theirs, name):
    model = timm.create_model(f"fused_{name}").eval()
    model.to(next(theirs.parameters()).dtype)
    state_dict = checkpoint_filter_fn(theirs.state_dict(), model)
    assert state_dict.keys() == model.state_dict().keys()
    model.load_state_dict(state_dict)
    return model


def _compare(name, size, filled, agree):
    theirs = _timms(name, filled)
    ours = _ours(theirs, name)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        (final, maps), (expected, their_maps) = (m.forward_intermediates(x) for m in (ours, theirs))
        assert len(maps) == 4
        for stage, pair in enumerate(zip(maps, their_maps[-4:])):  # theirs begin with the stem
            agree(*pair, f"stage {stage}")
        agree(ours.forward_head(final), theirs.forward_head(expected), "logits")


@pytest.mark.parametrize("name", TIMMS)
def test_gives_timms_maps_and_logits(name, filled, agree):
    _compare(name, (256, 256), filled, agree)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 512), (512, 256)])
@pytest.mark.parametrize("name", TIMMS)
def test_gives_timms_maps_and_logits_at_other_sizes_that_timm_takes(name, size, filled, agree):
    _compare(name, size, filled, agree)


@pytest.mark.parametrize("name", TIMMS)
def test_gives_timms_gradients(name, filled, agree):
    # float64: in float32 a few activations near zero fall to either side, which moves gradients by percents
    theirs = _timms(name, filled).double()
    ours = _ours(theirs, name)
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    logits, their_logits = ours(x), theirs(x)
    grad = torch.randn_like(logits)
    logits.backward(grad)
    their_logits.backward(grad)
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    gradients = checkpoint_filter_fn(theirs.state_dict() | gradients, ours)
    for n, p in ours.named_parameters():
        agree(p.grad, gradients[n], n)


@pytest.mark.parametrize("name", TIMMS)
def test_parameters_are_timms(name):
    ours, theirs = (timm.create_model(n, device="meta") for n in (f"fused_{name}", name))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    renamed = checkpoint_filter_fn(theirs.state_dict(), ours)
    assert {n: p.shape for n, p in renamed.items()} == {n: p.shape for n, p in ours.state_dict().items()}


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_those_that_the_papers_table_prints(name):
    model = timm.create_model(f"fused_halonet_{name}", device="meta")
    count = sum(p.numel() for p in model.parameters())
    # cut off, not rounded, as H6 shows
    assert count // 100_000 == round(10 * TABLE[name][-1])


def test_timms_weights_are_named_with_their_licence():
    for name in TIMMS[1:]:
        cfg = timm.get_pretrained_cfg(f"fused_{name}")
        assert cfg.hf_hub_id == f"timm/{name}.a1h_in1k" and cfg.license == "apache-2.0"
        theirs = timm.get_pretrained_cfg(f"{name}.a1h_in1k")
        for field in ("input_size", "crop_pct", "mean", "std", "interpolation", "num_classes"):
            assert getattr(cfg, field) == getattr(theirs, field), field
        assert timm.list_models(f"fused_{name}.*", pretrained=True)
        assert timm.list_models(f"{name}.*", pretrained=True), "timm's own configurations are gone"


def test_the_papers_variants_have_no_weights_and_say_so():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for fused_halonet_h0"):
        timm.create_model("fused_halonet_h0", pretrained=True)


def test_timms_checkpoint_loads_as_pretrained_weights(filled, tmp_path, caplog):
    theirs = _timms("halonet26t", filled)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    with caplog.at_level("INFO"):
        overlay = dict(file=str(tmp_path / "timm.pth"))
        model = timm.create_model("fused_halonet26t", pretrained=True, pretrained_cfg_overlay=overlay)
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    for name, tensor in checkpoint_filter_fn(theirs.state_dict(), model).items():
        assert torch.equal(model.state_dict()[name], tensor), name


def _short(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("fused_halonet26t", **{**SHORT, **kwargs})


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 90), (57, 64)])
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(size):
    model = _short().eval()  # a map of one place has no statistics of its own
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_maps_have_the_strides_that_are_said(stem_stride):
    model = _short(features_only=True, out_indices=(0, 1), stem_stride=stem_stride).eval()
    maps = model(torch.randn(1, 3, 41, 70))
    assert model.feature_info.reduction() == [stem_stride, 2 * stem_stride]
    for found, reduction in zip(maps, model.feature_info.reduction()):
        assert found.shape[2:] == (-(-41 // reduction), -(-70 // reduction))


@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_a_final_width_is_that_of_the_pooled_features_and_goes_with_the_last_stage():
    model = _short(final_dim=48).eval()
    x = torch.randn(1, 3, 32, 32)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (1, 48)
    assert model.head_hidden_size == 48 and model.num_features == 64
    model.reset_classifier(5, "max")
    assert model(x).shape == (1, 5) and model.head_hidden_size == 48
    model.prune_intermediate_layers([0])
    assert model.forward_head(model.forward_features(x)).shape == (1, 32, 8, 8)


def test_residual_blocks_start_as_their_shortcuts_and_draw_anew():
    model = _short()
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("conv3_1x1.bn.weight"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.init_weights()
    same = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert all(".bn." in n or "post_attn" in n or n.endswith("bias") for n in same)


@pytest.mark.parametrize("name", ["resnet18", "gna_nano", "halonet26t", "sehalonet33ts"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this HaloNet variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("fused_halonet50ts", device="meta"))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"block": 8}, TypeError, "block"),
        ({"act": "gelu"}, ValueError, "act must be one of relu, silu, got 'gelu'"),
        ({"stem_stride": 3}, ValueError, r"stem_stride must be one of \[1, 2, 4\], got 3"),
    ],
)
def test_bad_argument_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        _short(**kwargs)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model = _short().double()
    for name, p in model.named_parameters():
        if name.endswith("conv3_1x1.bn.weight"):
            torch.nn.init.ones_(p)
    eager, compiled = compiled_whole(model, torch.randn(2, 3, 57, 64, dtype=torch.float64), backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow  # half a minute; gna's export runs always
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    onnx_equal(_short().eval(), tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
