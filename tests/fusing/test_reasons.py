"""What fuse leaves alone, it leaves alone wholly, and says why."""

import pytest
import timm
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models import davit, maxxvit, swin_transformer
from torch import nn

from visionattn import fuse, unfuse


def _swin(**options):
    return swin_transformer.SwinTransformer(
        **{**dict(img_size=56, embed_dim=16, depths=(2,), num_heads=(2,), num_classes=3), **options}
    )


def _left_alone(model, names, words):
    classes, state = [type(m) for m in model.modules()], list(model.state_dict())
    report = fuse(model)
    assert {one.name for one in report.left} >= set(names)
    for one in report.left:
        assert one.name not in names or words in one.reason
    assert words in str(report)
    if not report:
        assert [type(m) for m in model.modules()] == classes and list(model.state_dict()) == state
    return report


@pytest.mark.parametrize(
    "name, words",
    [
        ("vit_tiny_patch16_224", "none of the kernels computes this kind"),
        ("swinv2_tiny_window8_256", "cosine attention"),
        ("coatnet_pico_rw_224", "over the whole map"),
    ],
)
def test_models_of_other_attention_are_returned_unchanged(name, words):
    model = timm.create_model(name, device="meta")
    names = [n for n, m in model.named_modules() if n.endswith("attn") and "TransformerBlock2d" not in str(type(m))]
    if name.startswith("coatnet"):
        names = [n.removesuffix(".attn") for n in names]
    assert not _left_alone(model, names, words)


def test_a_model_without_attention_says_so():
    report = fuse(timm.create_model("resnet18", device="meta"))
    assert not report and str(report) == "ResNet: nothing to fuse; it holds no attention of timm's"


def test_dropout_of_attention_is_left():
    report = _left_alone(_swin(attn_drop_rate=0.1), ["layers.0.blocks.0"], "attn_drop is 0.1")
    assert not report and "2" in str(report)


def test_only_what_stands_in_the_way_is_left():
    model = _swin()
    model.layers[0].blocks[1].attn.attn_drop.p = 0.5
    report = _left_alone(model, ["layers.0.blocks.1"], "attn_drop is 0.5")
    assert [place.name for place in report.fused] == ["layers.0.blocks.0"]
    assert model(torch.randn(1, 3, 56, 56)).shape == (1, 3)


def test_heads_that_the_kernels_do_not_take_are_left():
    _left_alone(
        _swin(embed_dim=8, num_heads=(2,)), ["layers.0.blocks.0"], "head dimension of q must lie in 8..256, got 4"
    )


def test_another_mask_is_left():
    model = _swin()
    model.layers[0].blocks[1].attn_mask.zero_()
    report = _left_alone(model, ["layers.0.blocks.1"], "attn_mask is not that of its shift")
    assert len(report.fused) == 1


def test_heirs_of_timms_classes_are_left():
    class Mine(swin_transformer.WindowAttention):
        def forward(self, x, mask=None):
            return 2 * super().forward(x, mask)

    model = _swin()
    model.layers[0].blocks[0].attn.__class__ = Mine
    _left_alone(model, ["layers.0.blocks.0"], "the class of attn is Mine, not timm's WindowAttention")
    block = model.layers[0].blocks[1]
    unfuse(model)
    block.__class__ = type("MyBlock", (swin_transformer.SwinTransformerBlock,), {})
    _left_alone(model, ["layers.0.blocks.1"], "the class is MyBlock")


def test_a_replaced_forward_is_left():
    model = _swin()
    attn = model.layers[0].blocks[0].attn
    attn.forward = lambda x, mask=None: x
    _left_alone(model, ["layers.0.blocks.0"], "forward of attn has been replaced")


def test_hooks_on_what_the_kernels_bypass_are_kept_alive():
    model, seen = _swin(), []
    model.layers[0].blocks[0].attn.softmax.register_forward_hook(lambda *_: seen.append(1))
    _left_alone(model, ["layers.0.blocks.0"], "attn.softmax has hooks")
    model(torch.randn(1, 3, 56, 56))
    assert seen


def test_unknown_relative_positions_are_left():
    model = timm.create_model("test_maxvit")
    name = next(n for n, m in model.named_modules() if isinstance(m, maxxvit.PartitionAttentionCl))
    model.get_submodule(name).attn.rel_pos = type("Mine", (nn.Module,), {"get_bias": lambda self: 0})()
    _left_alone(model, [name], "of class Mine")


def test_attention_outside_of_its_block_is_left():
    model = nn.Sequential(davit.WindowAttention(16, (7, 7), 2))
    assert not _left_alone(model, ["0"], "outside of the block")


def test_what_is_no_module_is_a_type_error():
    for function in (fuse, unfuse):
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
            function("swin_tiny_patch4_window7_224")


def test_unfuse_names_what_it_gave_back_and_leaves_others_alone():
    model = nn.Sequential(HaloAttn(16, num_heads=2), nn.Linear(2, 2))
    assert unfuse(model) == []
    fuse(model)
    assert unfuse(model) == ["0"] and type(model[0]) is HaloAttn


def test_a_class_made_of_a_fused_one_cannot_be_undone():
    model = nn.Sequential(HaloAttn(16, num_heads=2))
    fuse(model)
    model[0].__class__ = type("FSDPHalo", (type(model[0]),), {})
    assert fuse(model), "it still runs the kernels"
    with pytest.raises(ValueError, match="0 is of class FSDPHalo, made of a fused one"):
        unfuse(model)


def test_the_report_groups_what_is_alike():
    model = timm.create_model("davit_tiny", device="meta")
    text = str(fuse(model))
    assert text.splitlines()[0] == "DaVit: 12 modules with attention fused, 0 left"
    assert "fused DaViT windows: 6 from stages.0.blocks.0.0 to stages.3.blocks.0.0" in text
