"""InLine on its four hosts: the official checkpoints' outputs, sizes of images, checkpoints, graphs."""

import functools

import pytest
import timm
import torch

import visionattn

# parameters of the official constructors
PARAMETERS = {
    "inline_deit_tiny": 6477736,
    "inline_deit_small": 16734760,
    "inline_deit_base": 23797096,
    "inline_pvt_tiny": 12032232,
    "inline_pvt_small": 21556136,
    "inline_pvt_medium": 37618856,
    "inline_pvt_large": 51154280,
    "inline_swin_tiny": 29223544,
    "inline_swin_small": 49793296,
    "inline_swin_base": 88350120,
    "inline_cswin_tiny": 20604520,
    "inline_cswin_small": 33032872,
    "inline_cswin_base": 73413640,
}
HOSTS = ("deit", "pvt", "swin", "cswin")
SHORT = {
    "deit": {"dim": 64, "depth": 2, "num_heads": 2},
    "pvt": {"dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 2)},
    "swin": {"dims": (32, 64), "depths": (2, 2), "num_heads": (1, 2), "linear_depths": (1, 0)},
    "cswin": {
        "dims": (32, 64, 64),
        "depths": (1, 1, 1),
        "num_heads": (1, 2, 2),
        "linear_depths": (1, 0, 0),
        "stripe_widths": (1, 3, None),
    },
}
# one block of each kind, for what takes its time
SHORTEST = {
    "deit": {"depth": 1},
    "pvt": {"dims": (32,), "depths": (1,), "num_heads": (1,)},
    "swin": {"dims": (32,), "depths": (2,), "num_heads": (1,), "linear_depths": (1,)},
}


def _short(host, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(f"inline_{host}_tiny", **{**SHORT[host], "num_classes": 7, **kwargs})


@functools.cache  # a model takes its time, even without numbers
def _parameters(name):
    """Name -> shape of every parameter."""
    return {n: p.shape for n, p in timm.create_model(name, device="meta").named_parameters()}


def _filter(host):
    return getattr(visionattn.models, f"inline_{host}").checkpoint_filter_fn


@pytest.fixture(params=HOSTS)
def host(request):
    return request.param


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_the_official_models(name):
    assert sum(shape.numel() for shape in _parameters(name).values()) == PARAMETERS[name]


def test_windows_of_12_pixels_have_the_official_models_parameters_for_images_of_384():
    model = timm.create_model("inline_swin_base", img_size=384, window_size=12, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 88465320


GOLDENS = [("deit", False), ("deit", True), ("pvt", False), ("pvt", True), ("swin", False), ("swin", True),
           ("cswin", False)]  # CSwin has no table of positions to fill at full scale  # fmt: skip


@pytest.mark.parametrize("host, boosted", GOLDENS, ids=str)
def test_the_official_checkpoint_gives_the_official_logits(host, boosted, golden, tmp_path, caplog):
    figures = golden(f"inline_{host}_tiny")
    torch.save({"model": figures.state_dict(boosted) | figures.buffers()}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            f"inline_{host}_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth"))
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted)


def test_the_golden_figures_hold_an_image_that_is_not_square(golden):
    sizes = [case["input"]["shape"][2:] for case in golden("inline_pvt_tiny").doc["cases"]]
    assert [224, 224] in sizes and [256, 192] in sizes


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (57, 64), (33, 90)], ids=str)
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(host, size):
    model = _short(host)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("size", [(64, 64), (49, 75)], ids=str)
def test_batch_equals_its_images_one_by_one(host, size):
    model = _short(host).eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_own_and_wrapped_checkpoints_load(host):
    saved, model = _short(host).state_dict(), _short(host)
    model.load_state_dict(_filter(host)({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))
    headless = _short(host, num_classes=0)
    headless.load_state_dict(_filter(host)(headless.state_dict(), headless))


def test_foreign_checkpoint_is_refused(host):
    model = timm.create_model(f"inline_{host}_tiny", device="meta")
    others = ["resnet18", "deit_tiny_patch16_224", *(f"inline_{other}_tiny" for other in HOSTS if other != host)]
    for name in [*others, f"inline_{host}_small"]:
        if name == "inline_deit_small":
            continue  # has the names of the tiny one in other shapes, which torch refuses
        foreign = dict.fromkeys(_parameters(name), torch.zeros(1))
        with pytest.raises(ValueError, match="checkpoint is not one of this InLine-.* variant: names"):
            _filter(host)(foreign, model)


def test_no_weights_are_claimed(host):
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights"):
        timm.create_model(f"inline_{host}_tiny", pretrained=True)


def test_unknown_keyword_is_a_type_error(host):
    with pytest.raises(TypeError, match="num_head"):
        _short(host, num_head=3)


@pytest.mark.parametrize("host", ["pvt", "deit"])
def test_position_embeddings_follow_the_nominal_size_and_are_resized_from_checkpoints(host):
    source, model = _short(host, img_size=64), _short(host, img_size=(96, 160))
    for name, p in source.named_parameters():
        if name.endswith("pos_embed"):  # a ramp along both axes
            side = int(p.shape[1] ** 0.5)
            rows = torch.linspace(0.5 / side, 1 - 0.5 / side, side)
            ramp = (rows[:, None] + 2 * rows[None]).flatten()[None, :, None].expand(1, -1, p.shape[2])
            p.data[:, -side * side :] = ramp
    state_dict = _filter(host)(source.state_dict(), model)
    model.load_state_dict(state_dict)
    tables = {n: p for n, p in model.named_parameters() if n.endswith("pos_embed")}
    assert len(tables) == (2 if host == "pvt" else 1)
    for name, table in tables.items():
        rows, columns = model.get_submodule(name.removesuffix(".pos_embed")).grid
        assert rows * 5 == columns * 3
        image = table[0, -rows * columns :, 0].unflatten(0, (rows, columns))
        inner = image[1:-1, 2:-2]  # at the rim interpolation has nothing to go on
        assert (inner.diff(dim=0) > 0).all() and (inner.diff(dim=1) > 0).all()
        if host == "deit":
            assert torch.equal(table[:, 0], dict(source.named_parameters())[name][:, 0])


def test_an_embedding_of_a_map_that_is_not_square_is_refused():
    model = _short("deit", img_size=64)
    found = _short("deit", img_size=(64, 96)).state_dict()
    with pytest.raises(ValueError, match=r"stem.pos_embed must be of a square map .* \[1, 25, 64\]"):
        _filter("deit")(found, model)


def test_deit_pools_its_class_token_or_the_others():
    model, x = _short("deit").eval(), torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (2, 13, 64)
        torch.testing.assert_close(model(x), model.head(tokens[:, 0]))
        model.reset_classifier(5, "avg")
        torch.testing.assert_close(model(x), model.head(tokens[:, 1:].mean(1)))
        (last,) = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[:, 1:])
    with pytest.raises(ValueError, match="global_pool must be one of .* got 'max'"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match="output_fmt must be"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_checkpointing_changes_nothing(host):
    model, x = _short(host, drop_path_rate=0.0).double(), torch.randn(1, 3, 48, 48, dtype=torch.float64)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        out = model(x)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "host", ["deit", *(pytest.param(host, marks=pytest.mark.slow) for host in ("swin", "pvt", "cswin"))]
)
def test_compiles_as_one_graph_forward_and_backward(host, compiled_whole):
    options = {"drop_path_rate": 0.0, **SHORTEST.get(host, {})}
    model, x = _short(host, **options).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


def test_exports_at_a_fixed_size(host):
    model, x = _short(host).eval(), torch.randn(2, 3, 57, 64)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("host", ["pvt", "deit", "swin"])
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(host, onnx_equal, tmp_path):
    model = _short(host, **SHORTEST[host]).eval()
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])


@pytest.mark.slow
def test_onnx_of_cswin_whose_stripes_are_tied_to_a_size_is_equal_in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    model, x = _short("cswin").eval(), torch.randn(2, 3, 57, 64)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(torch.export.export(model, (x,)), f=path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(out) - model(x)).abs().max() <= 1e-5
