"""The BiFormer variants against figures of the official ones, and on images of any size."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.layers import RoutedAttention
from visionattn.models.biformer import checkpoint_filter_fn

PARAMETERS = {  # of the official constructors
    "biformer_tiny": 13_142_760,
    "biformer_small": 25_536_232,
    "biformer_base": 56_804_968,
    "biformer_stl": 28_372_552,
}
# both kinds of attention, and a routing that leaves regions out
SHORT = {"dims": (32, 64), "depths": (2, 1), "topk": (3, None), "num_heads": (2, 2), "num_classes": 7}


def _short(name="biformer_tiny", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SHORT, **kwargs})


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_the_official_ones(name):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    "figures, boosted",
    [("biformer_tiny", False), ("biformer_tiny", True), ("biformer_tiny_auto_pad", False),
     ("biformer_tiny_auto_pad", True), ("biformer_stl", False)],
)  # fmt: skip
def test_the_official_checkpoint_gives_the_official_logits(figures, boosted, golden, tmp_path, caplog):
    figures = golden(figures)
    torch.save({"model": figures.state_dict(boosted) | figures.buffers()}, tmp_path / "official.pth")
    with caplog.at_level("INFO"):
        model = timm.create_model(
            figures.doc["name"].removesuffix("_auto_pad"),
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / "official.pth")),
        ).eval()
    assert "Unexpected keys" not in caplog.text and "Missing keys" not in caplog.text
    figures.check(model, boosted)


@pytest.mark.parametrize("name", ["biformer_tiny", "biformer_stl"])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 90), (97, 64)], ids=str)
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(name, size):
    model = _short(name)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("size", [(112, 56), (75, 130)], ids=str)
def test_batch_equals_its_images_one_by_one(size):
    model = _short().eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_every_stage_routes_and_the_last_one_attends_to_all():
    model = timm.create_model("biformer_tiny", device="meta")
    routed = [[m for m in stage.modules() if isinstance(m, RoutedAttention)] for stage in model.stages]
    assert [len(found) for found in routed] == [2, 2, 8, 0]
    assert [found[0].topk for found in routed[:3]] == [1, 4, 16]


def test_own_headless_and_wrapped_checkpoints_load():
    saved, model = _short(num_classes=0).state_dict(), _short(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn({"state_dict": {f"module.{n}": t for n, t in saved.items()}}, model))


@pytest.mark.parametrize("name", ["resnet18", "gna_nano", "biformer_small", "biformer_stl", "davit_tiny"])
def test_foreign_checkpoint_is_refused(name):
    foreign = {n: torch.zeros(3) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this BiFormer variant: names"):
        checkpoint_filter_fn(foreign, timm.create_model("biformer_tiny", device="meta"))


def test_weights_that_are_nowhere_to_fetch_are_a_clear_error():
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights"):
        _short(pretrained=True)


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="n_win"):
        _short(n_win=7)


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    model, x = _short(depths=(1, 1), drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x, backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
def test_inductor_gives_the_eager_result(compiled_whole):
    model, x = _short(drop_path_rate=0.0).double(), torch.randn(2, 3, 57, 64, dtype=torch.float64)
    eager, compiled = compiled_whole(model, x)
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["biformer_tiny", "biformer_stl"])
def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(name, onnx_equal, tmp_path):
    # weights at a scale at which no two regions are nearly as good a choice
    model = _short(name, dims=(32,), depths=(1,), topk=(3,), num_heads=(1,)).eval()
    model.stages[0].blocks[0].attn.qk.weight.data.mul_(20)
    onnx_equal(model, tmp_path / "model.onnx", 64, (2, 3, 90, 101), [(3, 3, 112, 84), (1, 3, 64, 97)])


@pytest.mark.slow
def test_onnx_of_the_whole_tiny_one_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("biformer_tiny").eval()
    # from the smallest size on at which every region has two positions along an axis
    onnx_equal(model, tmp_path / "model.onnx", 113, (2, 3, 140, 151), [(1, 3, 224, 160)])
