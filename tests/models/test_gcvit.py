"""The GC ViT variants against timm and the official figures: maps, logits, gradients, checkpoints, sizes of images."""

import copy
import re

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.layers import WindowAttention
from visionattn.models.gcvit import GlobalQuery, checkpoint_filter_fn

VARIANTS = ("xxtiny", "xtiny", "tiny", "small", "base")
SHORT = {"dims": (32, 64), "depths": (2, 2), "num_heads": (1, 2), "num_classes": 7}


def _timms(size, filled, **kwargs):
    """timm's model with weights at a scale at which each of them shows, tables above all."""
    model = timm.create_model(f"gcvit_{size}", **kwargs).eval()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            t.copy_(filled(name, t.shape, full_scale=name.endswith("table")))
    return model


def _ours(theirs, size, **kwargs):
    model = timm.create_model(f"fused_gcvit_{size}", **kwargs).eval()
    state_dict = checkpoint_filter_fn(theirs.state_dict(), model)
    assert state_dict.keys() == model.state_dict().keys()
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize(
    "img_size, batch, with_gradients",
    [
        pytest.param((224, 224), 1, True, id="native"),
        pytest.param((192, 256), 2, False, id="another window"),
        pytest.param((96, 64), 2, True, id="a small window"),
    ],
)
def test_xxtiny_gives_timms_maps_logits_and_gradients(img_size, batch, with_gradients, filled, agree):
    theirs = _timms("xxtiny", filled, img_size=img_size)
    ours = _ours(theirs, "xxtiny", img_size=img_size)
    x = torch.randn(batch, 3, *img_size)
    with torch.set_grad_enabled(with_gradients):
        final, maps = ours.forward_intermediates(x, norm=True)  # timm's last map is the normed one
        expected, their_maps = theirs.forward_intermediates(x)
        logits, their_logits = ours.forward_head(final), theirs.forward_head(expected)
    assert len(maps) == len(their_maps) == 4
    for stage, (found, theirs_) in enumerate(zip(maps, their_maps)):
        agree(found, theirs_, f"stage {stage}")
    agree(logits, their_logits, "logits")
    if not with_gradients:
        return
    grad = torch.randn_like(logits)
    logits.backward(grad)
    their_logits.backward(grad)
    double = copy.deepcopy(theirs).double()  # squeeze-and-excitation over a few positions is badly conditioned
    double.zero_grad()
    double(x.double()).backward(grad.double())
    gradients, exact = (checkpoint_filter_fn({n: p.grad for n, p in model.named_parameters()}, ours)
                        for model in (theirs, double))  # fmt: skip
    for name, p in ours.named_parameters():
        agree(p.grad, gradients[name], name, exact[name])


@pytest.mark.slow
@pytest.mark.parametrize("size", VARIANTS[1:])
def test_the_others_give_timms_maps_and_logits(size, filled, agree):
    theirs = _timms(size, filled)
    ours = _ours(theirs, size)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps, their_maps = ours.forward_intermediates(x, norm=True)[1], theirs.forward_intermediates(x)[1]
        for stage, pair in enumerate(zip(maps, their_maps)):
            agree(*pair, f"stage {stage}")
        agree(ours(x), theirs(x), "logits")


@pytest.mark.parametrize("size", VARIANTS)
def test_parameters_are_timms(size):
    ours = timm.create_model(f"fused_gcvit_{size}", device="meta")
    theirs = timm.create_model(f"gcvit_{size}", device="meta")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    renamed = checkpoint_filter_fn(theirs.state_dict(), ours)
    assert {n: p.shape for n, p in renamed.items()} == {n: p.shape for n, p in ours.state_dict().items()}
    assert any("ls1" in n for n in ours.state_dict()) == (size in ("small", "base"))
    assert all(block.attn.head_dim == 32 for stage in ours.stages for block in stage.blocks)


@pytest.mark.parametrize("boosted", [False, True], ids=["plain", "boosted"])
def test_the_official_checkpoint_gives_the_official_logits(boosted, golden, tmp_path, caplog):
    figures = golden("gcvit_xxtiny")
    torch.save({"state_dict": figures.state_dict(boosted) | figures.buffers()}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            "fused_gcvit_xxtiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth"))
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted)  # one image, and a batch of two


OFFICIAL = (
    ("stem.conv1.", "patch_embed.proj."),
    ("stem.down.", "patch_embed.conv_down."),
    ("stages.", "levels."),
    ("context.blocks.", "q_global_gen.to_q_global."),
    ("ls1.gamma", "gamma1"),
    ("ls2.gamma", "gamma2"),
    ("head.fc.", "head."),
)
OFFICIAL_PARTS = {"conv_dw": "0", "se.fc1": "2.fc.0", "se.fc2": "2.fc.2", "conv_pw": "3"}


def test_official_layer_scales_load():
    model = timm.create_model("fused_gcvit_small", depths=(2,), dims=(96,), num_heads=(3,))
    official = {}
    for name, t in model.state_dict().items():
        for ours, theirs in OFFICIAL:
            name = name.replace(ours, theirs)
        part = r"(?:\.conv_block)?\.(conv_dw|conv_pw|se\.fc[12])\."
        name = re.sub(part, lambda m: f".conv.{OFFICIAL_PARTS[m[1]]}.", name)
        official[name] = t.flatten(1) if ".fc." in name else t
    assert sum("gamma" in name for name in official) == 4
    found = checkpoint_filter_fn(official, model)
    assert all(torch.equal(t, found[name]) for name, t in model.state_dict().items())


def test_epsilons_are_timms():
    def epsilons(name):
        modules = timm.create_model(name, device="meta").modules()
        return sorted((m.eps, tuple(m.weight.shape)) for m in modules if hasattr(m, "eps"))

    assert epsilons("fused_gcvit_small") == epsilons("gcvit_small")


def test_timms_weights_are_named_with_their_own_licence():
    for size in VARIANTS:
        cfg, theirs = timm.get_pretrained_cfg(f"fused_gcvit_{size}"), timm.get_pretrained_cfg(f"gcvit_{size}")
        for key in ("url", "num_classes", "input_size", "mean", "std", "crop_pct", "interpolation"):
            assert getattr(cfg, key) == getattr(theirs, key), (size, key)
        assert cfg.license == "cc-by-nc-sa-4.0"
        assert timm.list_models(f"fused_gcvit_{size}.*", pretrained=True)
        assert timm.list_models(f"gcvit_{size}.*", pretrained=True), "timm's own configurations are gone"


def _short(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("fused_gcvit_xxtiny", **{**SHORT, **kwargs})


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 90), (57, 64)])
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(size):
    model = _short(drop_path_rate=0.0)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_maps_are_channels_last_and_tables_take_no_weight_decay():
    model = _short()
    maps = model.forward_intermediates(torch.randn(2, 3, 67, 48), intermediates_only=True)
    assert [tuple(x.shape) for x in maps] == [(2, 32, 17, 12), (2, 64, 9, 6)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    assert model.no_weight_decay() == {n for n, _ in model.named_parameters() if n.endswith("table")}


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_the_global_query_is_resized_only_where_it_is_no_window():
    query, x = GlobalQuery(8, 2, (7, 7)).double(), torch.randn(1, 28, 28, 8, dtype=torch.float64)
    plain = x.permute(0, 3, 1, 2)
    for block in query.blocks:
        plain = torch.nn.functional.max_pool2d(block(plain), 3, 2, 1)
    assert torch.equal(query(x), plain.permute(0, 2, 3, 1))
    query.window_size = (5, 9)
    resized = torch.nn.functional.interpolate(plain, (5, 9), mode="bicubic")
    assert torch.equal(query(x), resized.permute(0, 2, 3, 1))


@pytest.mark.parametrize("index", [0, 1], ids=["local", "global"])
def test_what_lies_beyond_the_map_is_no_key(index):
    attn = _short().stages[0].blocks[index].attn.double()
    x = torch.randn(1, 9, 10, 32, dtype=torch.float64)
    query = (torch.randn(1, 7, 7, 32, dtype=torch.float64),) if index else ()
    seen = torch.autograd.functional.jacobian(lambda v: attn(v, *query)[0, 8, 9].sum(), x)[0].abs().sum(-1) > 0
    expected = torch.zeros(9, 10, dtype=torch.bool)
    expected[7:, 7:] = True
    assert torch.equal(seen, expected)
    with torch.no_grad():  # all keys weigh the same, and the map's values are one vector, another than padding's
        attn.qkv.weight[:-32] = 0
        attn.relative_position_bias_table.zero_()
        out = attn(torch.ones_like(x), *query)
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


@pytest.mark.parametrize("window", [(8, 12), ((6, 9), 8)])
def test_tables_are_resized_for_another_window(window):
    source = _short()
    for name, p in source.named_parameters():
        if name.endswith("table"):  # a table that falls off with the distance, along both axes
            n = torch.arange(-6.0, 7)
            p.data = -(n[:, None].abs() + 2 * n[None].abs()).flatten()[:, None].expand(p.shape).clone()
    model = _short(window_size=window)
    model.load_state_dict(checkpoint_filter_fn(source.state_dict(), model))
    for attn in (m for m in model.modules() if isinstance(m, WindowAttention)):
        h, w = attn.window_size
        table = attn.relative_position_bias_table[:, 0].unflatten(0, (2 * h - 1, 2 * w - 1))
        assert table[h - 1, w - 1].abs() < 1e-5 and table.argmax() == (h - 1) * (2 * w - 1) + w - 1
        assert (table[h - 1, w - 1 :].diff() < 0).all() and (table[h - 1 :, w - 1].diff() < 0).all()
    assert model(torch.randn(1, 3, 90, 64)).shape == (1, 7)


def test_another_nominal_size_changes_the_windows_as_building_for_it_does(agree):
    model, built = _short(img_size=96), _short(img_size=(96, 160))
    built.load_state_dict(checkpoint_filter_fn(model.state_dict(), built))
    model.set_input_size(img_size=(96, 160))
    state = model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in built.state_dict().items())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        agree(model.eval()(x), built.eval()(x), "logits")


def test_windows_that_were_asked_for_stay():
    model = _short(window_size=(5, 3), img_size=224)
    model.set_input_size(img_size=448)
    assert [m.window_size for m in model.modules() if isinstance(m, WindowAttention)] == [(5, 5)] * 2 + [(3, 3)] * 2


def test_a_stage_without_a_global_block_makes_no_query():
    model = _short(depths=(1, 2))
    assert model.stages[0].context is None and model.stages[1].context is not None
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "fused_swin_tiny", "swin_tiny_patch4_window7_224", "gcvit_xtiny"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this GC ViT variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("fused_gcvit_xxtiny", device="meta"))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"window_sizes": 7}, TypeError, "window_sizes"),
        ({"img_size": (224, 31)}, ValueError, r"img_size must be at least 32 a side.*got \(224, 31\)"),
        ({"stem_stride": 8}, ValueError, r"stem_stride must be one of \[1, 2, 4\], got 8"),
        ({"dims": (32,) * 5}, ValueError, "dims must have at most 4 entries"),
    ],
)
def test_bad_argument_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        _short(**kwargs)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model, x = _short(drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    model = _short(dims=(32,), depths=(2,), num_heads=(1,)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
