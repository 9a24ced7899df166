"""NAT, DiNAT and DiNAT_s: the official figures and files, dilations, sizes of images, checkpoints, graphs."""

import warnings

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.nat import checkpoint_filter_fn

# parameters that the official constructors give
PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
}
FAMILIES = ("nat_mini", "dinat_mini", "dinat_s_tiny")
SHORT = {"dims": (32, 64), "depths": (2, 1), "num_heads": (1, 2), "num_classes": 7}


def _short(name="dinat_mini", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SHORT, **kwargs})


def _meta(name, **kwargs):
    return timm.create_model(name, device="meta", **kwargs)


def _dilations(model, blocks=2):
    return [[block.attn.dilation for block in list(stage.blocks)[:blocks]] for stage in model.stages]


@pytest.mark.parametrize("boosted", [False, True], ids=["plain", "boosted"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_official_checkpoint_gives_the_official_logits(name, boosted, golden, tmp_path, caplog):
    figures = golden(name)  # 192x160 among the cases: maps smaller than the neighborhoods
    torch.save(figures.state_dict(boosted), tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        overlay = dict(file=str(tmp_path / "official.pth"))
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    names = checkpoint_filter_fn(figures.state_dict(boosted), model).keys()
    assert names == model.state_dict().keys()
    figures.check(model, boosted)


def _as_transformers(state_dict, family):
    """Official weights of NAT or DiNAT under the names, and cut into the parts, that Transformers gives them."""
    renames = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.", "embeddings."),
        ("levels.", "encoder.levels."),
        (".blocks.", ".layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.output.dense."),
        (".attn.", ".attention.self."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    )
    theirs = {}
    for key, tensor in state_dict.items():
        name = key.replace("norm.", "layernorm.") if key.startswith("norm.") else key
        for official, other in renames:
            name = name.replace(official, other)
        name = name.replace("head.", "classifier.") if name.startswith("head.") else f"{family}.{name}"
        if name.endswith(".gamma1"):
            both = torch.stack([tensor, state_dict[key.replace("gamma1", "gamma2")]])
            theirs[name.replace("gamma1", "layer_scale_parameters")] = both
        elif ".qkv." in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3))
            theirs |= {name.replace(".qkv.", f".{part}."): t.clone() for part, t in parts}
        elif not name.endswith(".gamma2"):
            theirs[name] = tensor
    return theirs


@pytest.mark.parametrize("name", ["nat_mini", "dinat_mini"])
def test_the_weights_in_the_layout_of_transformers_are_the_same(name, golden):
    official, model = golden(name).state_dict(boosted=False), _meta(name, layer_scale=1e-5)
    blocks = [n.removesuffix("norm1.weight") for n in official if n.endswith("norm1.weight")]
    for block in blocks:  # not in this model, but in the larger ones
        official |= {f"{block}gamma{i}": torch.randn_like(official[f"{block}norm1.weight"]) for i in (1, 2)}
    theirs = _as_transformers(official, name.partition("_")[0])
    assert f"{name.partition('_')[0]}.encoder.levels.0.layers.0.attention.self.query.weight" in theirs
    expected, found = (checkpoint_filter_fn(sd, model) for sd in (official, theirs))
    assert expected.keys() == found.keys() == model.state_dict().keys()
    assert all(torch.equal(t, found[n]) for n, t in expected.items())
    del theirs[next(n for n in theirs if ".self.key.weight" in n)]
    with pytest.raises(ValueError, match=r"1 missing \(stages.0.blocks.0.attn.qkv.weight\)"):
        checkpoint_filter_fn(theirs, model)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_official_constructors(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert all(block.attn.head_dim == 32 for stage in model.stages for block in stage.blocks)


def test_the_11x11_model_has_the_official_parameters_and_dilations():
    model = timm.create_model("dinat_large", kernel_size=11, img_size=384, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 201_144_250
    assert _dilations(model) == [[(1, 1), (d, d)] for d in (8, 4, 2, 1)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_dilations_and_layer_scale_are_the_published_ones(name):
    expected = (1, 1, 1, 1) if name.startswith("nat") else (8, 4, 2, 1)
    model = _meta(name)
    assert any("gamma" in n for n, _ in model.named_parameters()) == (name in ("nat_small", "nat_base", "dinat_base"))
    assert _dilations(model) == [[(1, 1), (d, d)] for d in expected]
    longest = [block.attn.dilation[0] for block in model.stages[2].blocks]
    assert longest == [1, expected[2]] * (len(longest) // 2)


def test_published_weights_are_named_with_their_licence_and_what_they_were_trained_with():
    for name in PARAMETERS:
        tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
        large, modules = name.endswith("large"), dict(_meta(name, depths=(1, 1, 1, 1)).named_modules())
        assert set(tags) == ({"in22k_ft_in1k", "in22k_ft_in1k_384", "in22k"} if large else {"in1k"})
        for tag in tags:
            cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
            assert cfg.url.startswith("https://shi-labs.com/projects/") and cfg.url.endswith(".pth")
            assert cfg.license == "mit" and "SHI-Labs/Neighborhood" in cfg.origin_url
            assert cfg.num_classes == (21841 if tag == "in22k" else 1000)
            assert cfg.input_size[1] == (384 if tag.endswith("_384") else 224)
            assert cfg.first_conv in modules and cfg.classifier in modules
    assert timm.get_pretrained_cfg("dinat_large").tag == "in22k_ft_in1k"


def test_weights_of_larger_images_bring_their_dilations():
    for name in ("dinat_large", "dinat_s_large"):
        model = _meta(f"{name}.in22k_ft_in1k_384")
        assert _dilations(model) == [[(1, 1), (d, d)] for d in (13, 6, 3, 1)]
        assert not timm.models.get_model_input_config(model)["fixed_input_size"]


def test_another_nominal_size_changes_the_dilations_and_nothing_else():
    model = _short(img_size=384)
    assert _dilations(model) == [[(1, 1), (13, 13)], [(1, 1)]]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.set_input_size(img_size=(320, 480))
    assert _dilations(model) == [[(1, 1), (11, 17)], [(1, 1)]]
    model.set_input_size(img_size=20)
    assert _dilations(model) == [[(1, 1), (1, 1)], [(1, 1)]]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_dilations_that_were_asked_for_are_taken_in_turn_and_stay():
    model = _short(dilations=((1, 28, 1), (1, 7, 1, 14)), depths=(3, 5), img_size=224)
    model.set_input_size(img_size=384)
    assert [[d for d, _ in stage] for stage in _dilations(model, 5)] == [[1, 28, 1], [1, 7, 1, 14, 1]]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 90), (57, 64)])
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(name, size):
    model = _short(name, drop_path_rate=0.0)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(name, size):
    model = _short(name, img_size=(64, 96)).eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_dinat_tiny_gives_feature_maps_at_320x480(filled, agree):
    def build(**kwargs):
        model = timm.create_model("dinat_tiny", features_only=True, drop_path_rate=0.0, **kwargs)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(filled(name, p.shape, full_scale=name.endswith("rpb")))
        return model

    model, x = build().eval(), torch.randn(1, 3, 320, 480)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gathering = build(attn_drop_rate=1e-30).train()  # drops nothing, but gathers every window by itself
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        maps, expected = model(x), gathering(x)
    assert [tuple(m.shape) for m in maps] == [(1, 64, 80, 120), (1, 128, 40, 60), (1, 256, 20, 30), (1, 512, 10, 15)]
    for stage, pair in enumerate(zip(maps, expected)):
        agree(*pair, f"stage {stage}")


@pytest.mark.parametrize("kernel", [5, 9, (7, 11)])
def test_tables_are_resized_for_another_window(kernel, tmp_path):
    source = _short()
    for name, p in source.named_parameters():
        if name.endswith("rpb"):  # a table that falls off with the distance, along both axes
            n = torch.arange(-6.0, 7)
            p.data = -(n[:, None].abs() + 2 * n[None].abs()).expand(p.shape).clone()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), num_classes=7)
    model = _short(kernel_size=kernel, pretrained=True, pretrained_cfg_overlay=overlay)
    h, w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    for name, p in model.named_parameters():
        if name.endswith("rpb"):
            assert p.shape[1:] == (2 * h - 1, 2 * w - 1)
            assert p[0, h - 1, w - 1].abs() < 1e-5 and p[0].argmax() == (h - 1) * (2 * w - 1) + w - 1
            assert (p[:, h - 1, w - 1 :].diff() < 0).all() and (p[:, h - 1 :, w - 1].diff() < 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_own_headless_and_wrapped_checkpoints_load(name):
    saved, model = _short(name, num_classes=0).state_dict(), _short(name, num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("target", ["nat_tiny", "dinat_s_tiny"])
@pytest.mark.parametrize("name", ["resnet18", "fused_swin_tiny", "swin_tiny_patch4_window7_224", "nat_mini"])
def test_foreign_checkpoint_is_refused(name, target, tmp_path):
    foreign = {n: torch.zeros(1) for n in _meta(name).state_dict()}
    torch.save(foreign, tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match="checkpoint is not one of this NAT variant: names"):
        timm.create_model(target, pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("name", ["nat_tiny", "dinat_s_tiny"])
def test_biases_take_no_weight_decay_and_can_be_left_out(name):
    model = _meta(name)
    assert model.no_weight_decay() == {n for n, _ in model.named_parameters() if n.endswith("rpb")}
    plain = _short(name, rel_bias=False, qkv_bias=False)
    assert not [n for n, _ in plain.named_parameters() if n.endswith(("rpb", "qkv.bias"))]
    assert plain(torch.randn(1, 3, 40, 40)).shape == (1, 7)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"window_sizes": 7}, TypeError, "window_sizes"),
        ({"dilations": ((1, 2),)}, ValueError, r"dilations must have 2 entries, one a stage, got \(\(1, 2\),\)"),
        ({"dilations": ((1,), (0,))}, ValueError, r"dilation must be positive, got \(0, 0\)"),
    ],
)
def test_bad_argument_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        _short(**kwargs)


@pytest.mark.parametrize("name", [pytest.param("nat_mini", marks=pytest.mark.slow), "dinat_mini", "dinat_s_tiny"])
def test_compiles_as_one_graph_forward_and_backward(name, compiled_whole):
    model = _short(name, drop_path_rate=0.0, img_size=96).double()  # dilation 3: rows are filled up, columns are not
    eager, compiled = compiled_whole(model, torch.randn(2, 3, 57, 90, dtype=torch.float64), backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
def test_two_dynamic_graphs_serve_every_size():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = _short(dims=(32,), depths=(1,), num_heads=(1,), dilations=((3,),)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for shape in [(2, 3, 60, 64), (2, 3, 90, 101), (3, 3, 70, 77), (4, 3, 225, 301)]:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 2, "one for maps that are filled up, one for the others"


@pytest.mark.parametrize("name", ["dinat_mini", "dinat_s_tiny"])
def test_exports_at_a_fixed_size(name):
    model, x = _short(name).eval(), torch.randn(2, 3, 57, 64)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dinat_mini" else pytest.mark.slow) for name in FAMILIES]
)
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(name, onnx_equal, tmp_path):
    # one dilated block, of a neighborhood that some of the maps are smaller than
    model = _short(name, dims=(32,), depths=(1,), num_heads=(1,), dilations=((3,),)).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gpu_gives_the_results_of_the_cpu_where_maps_are_filled_up(name, agree):
    model, x = _short(name, drop_path_rate=0.0), torch.randn(2, 3, 57, 240)  # dilation 8: rows are filled up
    results = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        with torch.backends.cudnn.flags(allow_tf32=False):
            logits = model(x.to(device))
            logits.square().sum().backward()
        results.append({"logits": logits.detach().cpu(), **{n: p.grad.cpu() for n, p in model.named_parameters()}})
    for key, expected in results[0].items():
        agree(results[1][key], expected, key)
