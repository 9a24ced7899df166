"""The skeleton's own contract, on toy blocks: what every family gets for free."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import ClNormMlpClassifierHead
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import visionattn  # noqa: F401
from visionattn.models import Pyramid

SMALL = {"dims": (16, 32, 48), "depths": (1, 2, 1), "num_heads": (1, 1, 2)}  # of gna_nano


class _Block(nn.Module):
    """Shrinks and widens by itself where its site says so; adds the context where it gets one."""

    def __init__(self, site, device=None, dtype=None):
        super().__init__()
        self.site = site
        self.conv = nn.Conv2d(site.in_dim, site.dim, 3, site.stride, 1, device=device, dtype=dtype)

    def forward(self, x, context=None):
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if context is None else x + context


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean((1, 2), keepdim=True)


def _sites(model):
    return [block.site for stage in model.stages for block in stage.blocks]


def _small(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("gna_nano", **{**SMALL, "num_classes": 7, "out_indices": None, **kwargs})


def test_sites_tell_each_block_its_place_and_a_linear_drop_path():
    model = Pyramid((8, 16), (2, 3), _Block, drop_path_rate=0.4)
    places = [(s.stage, s.index, s.depth) for s in _sites(model)]
    assert places == [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3), (1, 2, 3)]
    assert [(s.in_dim, s.dim, s.stride) for s in _sites(model)] == [(8, 8, 1)] * 2 + [(16, 16, 1)] * 3
    assert [s.drop_path for s in _sites(model)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_without_downsampler_the_first_block_of_a_stage_shrinks_the_map():
    model = Pyramid(
        (8, 16), (2, 1), _Block, stem_stride=2, stem_dim=6, stage_strides=(2, 2), downsample=None, num_classes=5
    )
    assert [(s.in_dim, s.dim, s.stride) for s in _sites(model)] == [(6, 8, 2), (8, 8, 1), (8, 16, 2)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8]
    maps = model.forward_intermediates(torch.randn(1, 3, 31, 64), intermediates_only=True)
    assert [tuple(x.shape) for x in maps] == [(1, 8, 8, 16), (1, 16, 4, 8)]


def test_downsampler_before_the_first_stage_and_any_number_of_stages():
    model = Pyramid((8, 8, 12, 12, 20), (1,) * 5, _Block, stem_stride=1, stem_dim=4, stage_strides=(4, 1, 2, 1, 2))
    assert [isinstance(stage.downsample, nn.Identity) for stage in model.stages] == [False, True, False, True, False]
    assert [info["reduction"] for info in model.feature_info] == [4, 4, 8, 8, 16]
    assert model.forward_features(torch.randn(1, 3, 32, 48)).shape == (1, 20, 2, 3)


def test_context_of_a_stage_reaches_its_blocks_image_by_image():
    def context(stage, dim, device=None, dtype=None):
        return _Mean() if stage == 1 else None

    model = Pyramid((8, 16), (1, 2), _Block, context=context, num_classes=5).eval().double()
    assert model.stages[0].context is None
    x = torch.randn(3, 3, 32, 40, dtype=torch.float64)
    together = model(x)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in x]))
    model.stages[1].context = None
    assert not torch.allclose(model(x), together)


def test_norm_behind_the_pool_instead_of_before_it():
    head = partial(ClNormMlpClassifierHead, hidden_size=24, act_layer="tanh")
    model = Pyramid((8, 16), (1, 1), _Block, norm_layer=None, head=head, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    assert isinstance(model.norm, nn.Identity) and model.head_hidden_size == 24
    assert model(x).shape == (2, 5)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert pruned.num_features == pruned.head_hidden_size == 8
    pruned.reset_classifier(3, "avg")
    assert pruned(x).shape == (2, 3)


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="imag_size"):
        Pyramid((8,), (1,), _Block, imag_size=3)


def test_lists_of_different_length_are_named():
    with pytest.raises(ValueError, match=r"one entry a stage, got \(8, 16\), \(1,\) and \(1, 2\)"):
        Pyramid((8, 16), (1,), _Block)


# -- timm's contract beyond timm's own suite --------------------------------------------------------------------------


@pytest.mark.parametrize("pool, width", [("avg", 48), ("max", 48), ("avgmax", 48), ("catavgmax", 96)])
def test_head_hidden_size_follows_the_pooling(pool, width):
    model = _small().eval()
    x = torch.randn(2, 3, 32, 32)
    model.reset_classifier(5, pool)
    assert model.head_hidden_size == width
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, width)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, width)


@pytest.mark.parametrize("num_classes, channels", [(0, 48), (5, 5)])
def test_without_pooling_the_output_is_a_map(num_classes, channels):
    model = _small(num_classes=num_classes, global_pool="")
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, channels, 2, 3)


def test_reset_classifier_keeps_the_pooling():
    model = _small(global_pool="max").eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)


def test_pruning_to_a_stage_gives_a_classifier_on_its_map():
    model = _small(features_only=False)
    model.prune_intermediate_layers([1], prune_norm=True)
    model.reset_classifier(4, "avg")
    assert model.head_hidden_size == model.num_features == 32
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_in_both_layouts_and_the_norm_on_the_last_alone(norm):
    model = _small().eval()
    x = torch.randn(1, 3, 32, 48)
    final, maps = model.forward_intermediates(x, norm=norm)
    for_last = model.forward_intermediates(x, indices=1, norm=norm, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(for_last[0].permute(0, 3, 1, 2), maps[-1])
    assert torch.equal(final, maps[-1]) == norm
    torch.testing.assert_close(final, model.forward_features(x))
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_no_gradient(features_only):
    gradients = []
    for checkpointing in (False, True):
        model = _small(features_only=features_only, out_indices=(0, 1, 2) if features_only else None)
        model = model.train().double()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        out = model(torch.randn(2, 3, 40, 32, dtype=torch.float64))
        sum(x.square().mean() for x in (out if features_only else [out])).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_groups_are_the_stem_the_blocks_and_the_head_in_order():
    model = _small()
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(fine) == set(coarse) == {name for name, _ in model.named_parameters()}
    order = [
        "stem.conv1.weight",
        "stages.0.blocks.0.attn.rpb",
        "stages.1.downsample.conv.weight",
        "stages.1.blocks.1.mlp.fc1.weight",
        "stages.2.blocks.0.norm1.weight",
        "head.fc.weight",
    ]
    assert [fine[name] for name in order] == [0, 1, 2, 3, 4, 5]
    assert fine["norm.weight"] == fine["stages.2.blocks.0.norm1.weight"]
    assert [coarse[name] for name in order] == [0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("features_only", [False, True])
def test_optimizer_decays_no_relative_table_norm_or_bias(features_only):
    model = _small(features_only=features_only, out_indices=(0, 1, 2) if features_only else None)
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("rpb")}


def test_init_weights_draws_everything_anew():
    model = _small()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3)
    torch.manual_seed(1)
    model.init_weights()
    for name, p in model.named_parameters():
        assert (p != 3).all(), name
        if p.ndim == 1 and not name.startswith("stem.conv"):
            assert torch.equal(p, before[name]), name


def test_nominal_size_is_recorded_for_timm_and_nothing_else():
    model = _small(img_size=(64, 96))
    state = {n: t.clone() for n, t in model.state_dict().items()}
    assert timm.models.get_model_input_config(model)["input_size"] == (3, 64, 96)
    model.set_input_size(img_size=(128, 32))
    assert timm.models.get_model_input_config(model)["input_size"] == (3, 128, 32)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    rebuilt = timm.create_model("gna_nano", **timm.models.get_model_args(model))
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
