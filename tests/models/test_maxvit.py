"""The MaxViT variants against timm's, with the same weights: maps, logits, gradients, checkpoints, sizes of images."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.layers import WindowAttention
from visionattn.models.maxvit import MbConv, SameConv, checkpoint_filter_fn

VARIANTS = ("tiny", "small", "base", "large")
THEIRS = "maxvit_{}_tf_224"
SHORT = {"dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "stem_dim": 16, "num_classes": 7}


def _timms(size, filled, **kwargs):
    """timm's model with weights at a scale at which each of them shows, tables above all."""
    model = timm.create_model(THEIRS.format(size), **kwargs).eval()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if t.is_floating_point():
                t.copy_(filled(name, t.shape, full_scale=name.endswith("table")))
    return model


def _ours(theirs, size, **kwargs):
    model = timm.create_model(f"fused_maxvit_{size}", **kwargs).eval()
    state_dict = checkpoint_filter_fn(theirs.state_dict(), model)
    assert state_dict.keys() == model.state_dict().keys()
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize(
    "img_size, shape, with_gradients",
    [
        pytest.param(224, (224, 224), True, id="native"),
        pytest.param((192, 256), (192, 256), False, id="img_size of another window"),
        pytest.param((96, 64), (96, 64), True, id="img_size of a small window"),
        pytest.param(64, (128, 192), False, id="larger images than the windows were made for"),
    ],
)
def test_tiny_gives_timms_maps_logits_and_gradients(img_size, shape, with_gradients, filled, agree):
    theirs = _timms("tiny", filled, img_size=img_size)
    ours = _ours(theirs, "tiny", img_size=img_size)
    x = torch.randn(1, 3, *shape)
    with torch.set_grad_enabled(with_gradients):
        final, maps = ours.forward_intermediates(x)
        expected, their_maps = theirs.forward_intermediates(x, indices=4)  # timm counts the stem as a stage
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
    buffers = {n: t for n, t in theirs.state_dict().items() if n not in dict(theirs.named_parameters())}
    gradients = checkpoint_filter_fn({n: p.grad for n, p in theirs.named_parameters()} | buffers, ours)
    for name, p in ours.named_parameters():
        agree(p.grad, gradients[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("size", VARIANTS[1:])
def test_the_others_give_timms_maps_and_logits(size, filled, agree):
    theirs = _timms(size, filled)
    ours = _ours(theirs, size)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for stage, (found, expected) in enumerate(
            zip(ours.forward_intermediates(x)[1], theirs.forward_intermediates(x, indices=4)[1])
        ):
            agree(found, expected, f"stage {stage}")
        agree(ours(x), theirs(x), "logits")


def test_batch_statistics_of_training_are_timms(filled, agree):
    theirs = _timms("tiny", filled, img_size=64).train()
    ours = _ours(theirs, "tiny", img_size=64, drop_path_rate=0.0).train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        agree(ours(x), theirs(x), "logits")
    for name, expected in checkpoint_filter_fn(theirs.state_dict(), ours).items():
        if "running" in name:
            agree(ours.state_dict()[name], expected, name)


@pytest.mark.parametrize("size", VARIANTS)
def test_parameters_are_timms(size):
    ours = timm.create_model(f"fused_maxvit_{size}", device="meta")
    theirs = timm.create_model(THEIRS.format(size), device="meta")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    renamed = checkpoint_filter_fn(theirs.state_dict(), ours)
    assert {n: p.shape for n, p in renamed.items()} == {n: p.shape for n, p in ours.state_dict().items()}
    assert all(block.attn_grid.attn.head_dim == 32 for stage in ours.stages for block in stage.blocks)


def test_epsilons_are_timms():
    def epsilons(name):
        modules = timm.create_model(name, device="meta").modules()
        return sorted((m.eps, tuple(m.weight.shape)) for m in modules if hasattr(m, "eps"))

    assert epsilons("fused_maxvit_tiny") == epsilons(THEIRS.format("tiny"))


def test_timms_weights_are_named_with_their_licence_and_what_they_were_trained_with():
    for size in VARIANTS:
        tags = [name.partition(".")[2] for name in timm.list_models(f"fused_maxvit_{size}.*", pretrained=True)]
        assert len(tags) == len(timm.list_models(f"maxvit_{size}_tf_*", pretrained=True)), "weights left out"
        for tag in tags:
            cfg = timm.get_pretrained_cfg(f"fused_maxvit_{size}.{tag}")
            theirs = timm.get_pretrained_cfg(cfg.hf_hub_id.removeprefix("timm/"))
            assert theirs is not None, "timm has no such weights"
            for key in ("num_classes", "input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"):
                assert getattr(cfg, key) == getattr(theirs, key), (size, tag, key)
            assert cfg.license == "apache-2.0"
    assert timm.get_pretrained_cfg("fused_maxvit_tiny").tag == "in1k"


def test_weights_of_larger_images_bring_their_windows():
    model = timm.create_model("fused_maxvit_tiny.in1k_384", **SHORT)
    assert model.stages[0].blocks[0].attn_grid.attn.window_size == (12, 12)
    assert not timm.models.get_model_input_config(model)["fixed_input_size"]
    assert model(torch.randn(1, 3, 70, 50)).shape == (1, 7)


def _short(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("fused_maxvit_tiny", **{**SHORT, **kwargs})


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


@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


@pytest.mark.parametrize("partition", ["attn_block", "attn_grid"])
def test_what_lies_beyond_the_map_is_no_key(partition):
    attn = getattr(_short().stages[0].blocks[0], partition).attn.double()
    x = torch.randn(1, 9, 10, 32, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda v: attn(v)[0, 8, 9].sum(), x)[0].abs().sum(-1) > 0
    rows, columns = ([7, 8], [7, 8, 9]) if partition == "attn_block" else (range(0, 9, 2), range(1, 10, 2))
    expected = torch.zeros(9, 10, dtype=torch.bool)
    expected[torch.tensor(list(rows))[:, None], torch.tensor(list(columns))] = True
    assert torch.equal(seen, expected)
    with torch.no_grad():  # all keys weigh the same, and the map's values are one vector, another than padding's
        attn.qkv.weight[:-32] = 0
        attn.relative_position_bias_table.zero_()
        out = attn(torch.ones_like(x))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


@pytest.mark.parametrize("n, stride", [(7, 2), (8, 2), (1, 2), (5, 1)])
def test_convolutions_pad_as_tensorflow_does(n, stride):
    conv, x = SameConv(1, 1, stride, bias=False).double(), torch.randn(1, 1, n, n, dtype=torch.float64)
    outputs = -(-n // stride)
    total = max((outputs - 1) * stride + 3 - n, 0)  # TensorFlow's definition of SAME, the odd one behind
    padded = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(padded, conv.weight, stride=stride))


def test_the_shortcut_of_an_odd_map_averages_what_is_there():
    shortcut, x = MbConv(4, 4, 2).shortcut, torch.ones(1, 4, 5, 3)
    assert torch.equal(shortcut(x), torch.ones(1, 4, 3, 2))


def test_tables_are_resized_for_another_window_as_timm_does(filled, agree):
    source = _timms("tiny", filled, img_size=64).state_dict()
    theirs, ours = timm.create_model(THEIRS.format("tiny"), img_size=160), timm.create_model(
        "fused_maxvit_tiny", img_size=160
    )
    from timm.models.maxxvit import checkpoint_filter_fn as timms_filter

    theirs.load_state_dict(timms_filter(source, theirs))
    expected = checkpoint_filter_fn(theirs.state_dict(), ours)
    for name, found in checkpoint_filter_fn(source, ours).items():
        if name.endswith("table"):
            agree(found, expected[name], name)


@pytest.mark.parametrize("size", [(96, 160), (224, 224)])
def test_another_nominal_size_changes_the_windows_as_building_for_it_does(size, agree):
    model, built = _short(img_size=96), _short(img_size=size)
    built.load_state_dict(checkpoint_filter_fn(model.state_dict(), built))
    model.stages[0].blocks[0].attn_grid.attn.relative_position_bias_table.requires_grad_(False)
    model.set_input_size(img_size=size)
    state = model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in built.state_dict().items())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "stages.0.blocks.0.attn_grid.attn.relative_position_bias_table"
    ]
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        agree(model.eval()(x), built.eval()(x), "logits")


def test_windows_that_were_asked_for_stay():
    model = _short(window_size=(5, 3), img_size=224)
    model.set_input_size(img_size=448)
    assert {m.window_size for m in model.modules() if isinstance(m, WindowAttention)} == {(5, 3)}


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "fused_swin_tiny", "maxvit_tiny_rw_224", "maxvit_base_tf_224"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this MaxViT variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("fused_maxvit_tiny", device="meta"))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"window_sizes": 7}, TypeError, "window_sizes"),
        ({"img_size": (224, 31)}, ValueError, r"img_size must be at least 32 a side.*got \(224, 31\)"),
        ({"stem_stride": 4}, ValueError, r"stem_stride must be one of \[1, 2\], got 4"),
    ],
)
def test_bad_argument_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        _short(**kwargs)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model, x = _short(drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow  # half a minute; gna's export runs always
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    model = _short(dims=(32,), depths=(1,), num_heads=(1,)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])
