"""The GNA variants: sizes of images, outputs, figures, and what timm users expect of them."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401
from visionattn.layers import NeighborhoodAttention

VARIANTS = ("gna_nano", "gna_tiny", "gna_small", "gna_base")
SIZES = ((224, 224), (97, 130), (512, 384))
slow = pytest.mark.slow


def _cases():
    for size in SIZES:
        yield pytest.param("gna_nano", size)
        yield pytest.param("gna_tiny", size, marks=[] if size == (97, 130) else slow)
        yield pytest.param("gna_small", size, marks=slow)
        yield pytest.param("gna_base", size, marks=slow)


def _model(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name, size", list(_cases()))
def test_any_size_gives_logits_and_a_gradient_to_every_parameter(name, size):
    model = _model(name, num_classes=10, drop_path_rate=0.0)
    logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 10)
    logits.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert all(m.rpb.grad.abs().sum() > 0 for m in model.modules() if isinstance(m, NeighborhoodAttention))


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (28, 28)])
def test_image_smaller_than_any_window_works(size):
    model = _model("gna_nano", num_classes=10).eval()
    assert model(torch.randn(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (49, 75)])
def test_batch_equals_its_images_one_by_one(size):
    model = _model("gna_nano", num_classes=10).eval().double()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


@pytest.mark.parametrize(
    "name, millions, giga_macs",
    [("gna_nano", 4.392, 0.60), ("gna_tiny", 27.902, 4.3), ("gna_small", 50.743, 7.8), ("gna_base", 89.770, 13.7)],
)
def test_parameters_and_macs_are_those_documented(name, millions, giga_macs):
    # NAT's paper states 4.3, 7.8 and 13.7 GMACs for these widths; its tiny, small and base have as many parameters
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        x = torch.empty(1, 3, 224, 224)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
    with FlopCounterMode(display=False) as counter:
        model(x)
    attention = 0.0  # by hand: off CUDA the op is its plain definition, which looks at more keys than it keeps
    for stage, info in zip(model.stages, model.feature_info):
        positions, window = (224 // info["reduction"]) ** 2, min(49, (224 // info["reduction"]) ** 2)
        attention += len(stage.blocks) * 2 * positions * window * info["num_chs"]
    linear = sum(
        count
        for operator, count in counter.get_flop_counts()["Global"].items()
        if str(operator) in ("aten.addmm", "aten.mm", "aten.convolution")
    )
    assert round(linear / 2e9 + attention / 1e9, 1) == giga_macs


@pytest.mark.parametrize(
    "stem_stride, reductions, size",
    [(4, [4, 8, 16, 32], (64, 97)), (2, [2, 4, 8, 16], (47, 32)), (1, [1, 2, 4, 8], (16, 21))],
)
def test_features_only_gives_maps_of_the_stated_channels_and_reductions(stem_stride, reductions, size):
    model = _model("gna_nano", features_only=True, stem_stride=stem_stride)
    assert model.feature_info.reduction() == reductions
    assert model.feature_info.channels() == [32, 64, 128, 256]
    maps = model(torch.randn(2, 3, *size))
    for x, reduction, channels in zip(maps, reductions, model.feature_info.channels()):
        assert x.shape == (2, channels, -(-size[0] // reduction), -(-size[1] // reduction))
        assert x.is_contiguous(memory_format=torch.channels_last)
    sum(x.mean() for x in maps).backward()
    assert all(p.grad is not None for p in model.parameters()), "unused parameters break DDP"


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
def test_each_of_timms_feature_extractors_gives_the_same_maps(feature_cls):
    x = torch.randn(1, 3, 64, 40)
    short = {"depths": (2, 1, 1, 1)}
    whole = _model("gna_nano", **short).eval()
    expected = whole.forward_intermediates(x, indices=(1, 3), intermediates_only=True)
    model = _model("gna_nano", features_only=True, feature_cls=feature_cls, out_indices=(1, 3), **short).eval()
    maps = model(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    torch.testing.assert_close(maps, expected)
    assert model.feature_info.reduction() == [8, 32]


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
def test_stem_stride_keeps_the_parameters(stem_stride):
    shapes = {n: p.shape for n, p in _model("gna_nano", device="meta").named_parameters()}
    other = _model("gna_nano", device="meta", stem_stride=stem_stride)
    assert {n: p.shape for n, p in other.named_parameters()} == shapes


def test_neighborhoods_alternate_local_and_global_as_documented():
    model = _model("gna_tiny", device="meta")
    seen = [
        [(block.attn.dilation[0], block.attn.stride[0]) for block in stage.blocks[:3]] for stage in model.stages
    ]
    assert seen == [
        [(1, 2), (8, 1), (1, 2)],
        [(1, 2), (4, 1), (1, 2)],
        [(1, 1), (2, 1), (1, 1)],
        [(1, 1), (1, 1), (1, 1)],
    ]
    assert all(block.attn.head_dim == 32 for stage in model.stages for block in stage.blocks)


def test_layer_scale_is_where_nat_has_it():
    scaled = {name: any("gamma" in n for n, _ in _model(name, device="meta").named_parameters()) for name in VARIANTS}
    assert scaled == {"gna_nano": False, "gna_tiny": False, "gna_small": True, "gna_base": True}


def test_pretrained_without_weights_is_a_clear_error():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for gna_nano"):
        timm.create_model("gna_nano", pretrained=True)


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="window_sizes"):
        timm.create_model("gna_nano", window_sizes=7)


def test_unknown_stem_stride_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"stem_stride must be one of \[1, 2, 4\], got 8"):
        timm.create_model("gna_nano", stem_stride=8)


def test_other_channels_and_kernel_are_taken():
    model = _model("gna_nano", in_chans=1, kernel_size=5, num_classes=3, depths=(1, 1, 1, 1))
    assert model(torch.randn(1, 1, 40, 40)).shape == (1, 3)
    assert model.stages[0].blocks[0].attn.rpb.shape == (1, 9, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_factory_dtype_reaches_every_parameter_and_the_output(dtype):
    model = _model("gna_nano", num_classes=5, dtype=dtype, depths=(1, 1, 1, 1))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype
