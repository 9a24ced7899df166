"""What people do with timm's models works on fused ones as it does on theirs."""

import copy
import io

import pytest
import timm
import torch
from timm.models._features_fx import FeatureGraphNet
from torch import nn

import visionattn
from visionattn import fuse, unfuse

CHECKPOINTED = ("swin", "maxvit", "davit", "gcvit")


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_nothing(name, short, outcome, equal_bits):
    model, x = short(name)
    assert fuse(model)
    torch.manual_seed(7)
    plain = outcome(model.train(), x)
    model.set_grad_checkpointing()
    torch.manual_seed(7)
    assert equal_bits(outcome(model, x), plain)


@pytest.mark.parametrize("name", ["swin", "davit", "maxvit rw"])
def test_features_only_models_are_fused_inside(name, short, outcome, same):
    model, x = short(name, features_only=True)
    expected = outcome(model, x)
    assert fuse(model)
    same(outcome(model, x), expected)


@pytest.mark.parametrize("cls", ["dict", "hook", "getter"])
def test_every_kind_of_feature_extraction_sees_the_same(cls, short, outcome, same):
    model, x = short("swin", features_only=True, feature_cls=cls)
    expected = outcome(model, x)
    assert fuse(model)
    same(outcome(model, x), expected)


def test_a_fused_model_can_be_traced_and_a_traced_one_says_that_it_is_late(short, outcome, same):
    model, x = short("swin")
    late = FeatureGraphNet(copy.deepcopy(model), out_indices=(0, 1))
    expected = outcome(late, x)
    assert "fuse before a model is traced" in str(fuse(late)) and not fuse(late)
    assert fuse(model)
    traced = FeatureGraphNet(model, out_indices=(0, 1))
    found = outcome(traced, x)
    same({name.removeprefix("graph_module."): value for name, value in found.items()},
         {name.removeprefix("graph_module."): value for name, value in expected.items()})  # fmt: skip


def test_a_model_within_another_is_fused(short, outcome, same):
    class Detector(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.parts = nn.ModuleDict({"backbone": backbone})
            self.head = nn.Conv2d(32, 4, 1)

        def forward(self, x):
            return self.head(self.parts["backbone"](x)[-1].permute(0, 3, 1, 2))

    backbone, x = short("swin", features_only=True)
    model = Detector(backbone)
    expected = outcome(model, x)
    report = fuse(model)
    assert {place.name.rsplit(".", 3)[0] for place in report.fused} == {"parts.backbone"}
    same(outcome(model, x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "maxvit rmlp", "davit v2", "gcvit", "halonet"])
def test_compiles_as_one_graph_forward_and_backward(name, short, outcome, same):
    model, x = short(name)
    fuse(model)
    eager = outcome(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    same({k.removeprefix("_orig_mod."): v for k, v in outcome(compiled, x).items()}, eager)


def test_a_compiled_model_runs_the_kernels_after_fuse_and_timms_after_unfuse(short):
    model, x = short("swin")
    torch._dynamo.reset()
    graphs = []

    def watch(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=watch)
    with torch.no_grad():
        theirs = compiled(x)
        fuse(compiled)
        ours = compiled(x)
        unfuse(compiled)
        again = compiled(x)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(again, theirs)
    assert [".roll(" in text for text in graphs[:2]] == [True, False]


@pytest.mark.parametrize("name", ["swin", "davit"])
def test_copies_and_pickles_stay_fused(name, short, equal_bits):
    model, x = short(name)
    report = fuse(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    reloaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), reloaded):
            assert fuse(other) == report, "fusing again finds the same"
            assert torch.equal(other(x), expected)
            unfuse(other)
    assert any(type(m).__name__.startswith("Fused") for m in model.modules()), "a copy's classes are its own"


def test_checkpoints_go_both_ways(short, equal_bits):
    (theirs, _), (ours, _) = short("gcvit"), short("gcvit")
    fuse(ours)
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(1.1)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert equal_bits(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize(
    "name, change, size",
    [
        ("swin", dict(img_size=(112, 84)), (112, 84)),
        ("swin", dict(img_size=64, window_size=4), (64, 64)),
        ("swin any size", dict(img_size=(56, 40)), (96, 132)),
        ("maxvit", dict(img_size=(128, 96)), (128, 96)),
        ("maxvit rmlp", dict(img_size=128, partition_ratio=16), (128, 128)),
    ],
    ids=str,
)
def test_the_input_size_may_change_after_fuse(name, change, size, short, outcome, same):
    (theirs, _), (ours, _) = short(name), short(name)
    fuse(ours)
    theirs.set_input_size(**change)
    ours.set_input_size(**change)
    x = torch.randn(1, 3, *size)
    same(outcome(ours, x), outcome(theirs, x))
    unfuse(ours)
    same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("size", [(60, 64), (72, 132), (40, 200)], ids=str)
def test_swin_pads_maps_of_any_size_where_timm_does(size, short, outcome, same):
    model, _ = short("swin any size")
    x = torch.randn(1, 3, *size)
    expected = outcome(model, x)
    fuse(model)
    same(outcome(model, x), expected)


@pytest.mark.parametrize("name, size", [("maxvit", (75, 110)), ("halonet", (120, 200))], ids=str)
def test_maps_that_timm_refuses_are_taken(name, size, short):
    model, _ = short(name)
    x = torch.randn(1, 3, *size)
    with pytest.raises(AssertionError):
        model(x)
    fuse(model)
    with torch.no_grad():
        assert model(x).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        dict(dim=24, num_heads=3, block_size=7, halo_size=2, stride=2),  # which 7 does not hold: averaged
        dict(dim=24, num_heads=3, stride=2, avg_down=True),
        dict(dim=24, dim_out=36, num_heads=2, dim_head=10, stride=2, qkv_bias=True),
        dict(dim=16, num_heads=2, scale_pos_embed=True, qk_ratio=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_form_of_halo_attention(options, layout, outcome, same):
    from timm.layers.halo_attn import HaloAttn

    attn = HaloAttn(**options)
    side = 2 * attn.block_size
    x = torch.randn(2, options["dim"], side, side).contiguous(memory_format=layout)
    expected, kept = outcome(attn, x), attn(x).is_contiguous(memory_format=layout)
    assert fuse(attn)
    same(outcome(attn, x), expected)
    assert attn(x).is_contiguous(memory_format=layout) or not kept


def test_stochastic_depth_and_dropout_draw_the_same_numbers(short, outcome, same):
    for name in ("swin", "davit", "gcvit"):
        model, x = short(name, drop_path_rate=0.5, drop_rate=0.2)
        torch.manual_seed(7)
        expected = outcome(model.train(), x)
        fuse(model)
        torch.manual_seed(7)
        same(outcome(model, x), expected)


def test_hooks_keep_their_places(short):
    model, x = short("swin")
    seen = []
    hooked = [
        name for name, m in model.named_modules() if name.endswith((".attn", ".attn.qkv", ".attn.proj", "blocks.1"))
    ]
    for name in hooked:
        model.get_submodule(name).register_forward_hook(lambda m, inputs, out, name=name: seen.append(name))
    model(x)
    before, seen[:] = list(seen), []
    assert not fuse(model).left
    model(x)
    assert seen == before and set(seen) == set(hooked)


def test_under_data_parallel_it_trains_as_timms(short, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found, (_, x) = [], short("swin")
        for early, late in ((False, False), (True, False), (False, True)):
            model, _ = short("swin")
            if early:
                fuse(model)
            parallel = nn.parallel.DistributedDataParallel(model)
            if late:
                assert all(place.name.startswith("module.") for place in fuse(parallel).fused)
            optimizer = torch.optim.SGD(parallel.parameters(), lr=1e-3)
            for _ in range(2):
                parallel(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(model(x).detach())
        torch.testing.assert_close(found[1], found[0])
        torch.testing.assert_close(found[2], found[0])
    finally:
        torch.distributed.destroy_process_group()


def test_under_autocast_and_in_half_precision_it_stays_close(short):
    model, x = short("maxvit rw")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = model(x)
        fuse(model)
        ours = model(x)
    with torch.no_grad():
        exact = model.double()(x.double())
        error, their_error = ((y.double() - exact).norm() for y in (ours, theirs))
        assert error <= 2 * their_error
        assert model.bfloat16()(x.bfloat16()).isfinite().all()


def test_the_names_are_the_packages():
    assert visionattn.fuse is fuse and isinstance(visionattn.fuse(nn.Linear(1, 1)), visionattn.FuseReport)
    assert timm.create_model("swin_tiny_patch4_window7_224", device="meta").__class__.__module__.startswith("timm.")
