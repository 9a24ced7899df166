"""The peer of whole models: NATTEN's op in our NAT and DiNAT, with a stand-in for NATTEN where there is no GPU."""

import sys
import types

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.benchmark import models, natten_models
from visionattn.benchmark.cases import Case
from visionattn.benchmark.cli import main
from visionattn.benchmark.natten_models import NattenAttention
from visionattn.kernels import neighborhood_attention
from visionattn.layers import NeighborhoodAttention

SHORT = {"dims": (32, 64), "depths": (3, 1), "num_heads": (1, 2), "num_classes": 7, "img_size": 96, "rel_bias": False}


@pytest.fixture
def calls(monkeypatch):
    """Keyword arguments of every call of a ``natten.na2d`` that computes what NATTEN's does."""
    seen = []

    def na2d(query, key, value, kernel_size, stride=1, dilation=1, **options):
        seen.append(options)
        return neighborhood_attention(query, key, value, kernel_size, dilation, stride)

    module = types.ModuleType("natten")
    module.na2d = na2d
    monkeypatch.setitem(sys.modules, "natten", module)
    monkeypatch.setattr(natten_models, "_found", {})
    return seen


def _model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("dinat_mini", **{**SHORT, **kwargs}).eval()


def test_every_layer_is_replaced_and_the_model_stays_what_it_was(calls):
    ours, theirs = _model(), natten_models.replace(_model())
    assert not [m for m in theirs.modules() if isinstance(m, NeighborhoodAttention)]
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in ours.named_parameters()]
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(theirs(x), ours(x))
    assert len(calls) == 4
    sum(m(x).square().mean() for m in (ours, theirs)).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_a_bias_cannot_be_lost_unseen():
    with pytest.raises(ValueError, match="must have no relative bias"):
        natten_models.replace(_model(rel_bias=True))


def test_every_layer_gets_the_fastest_configuration_of_its_shape_and_pass(calls):
    searched = []

    def search(case, dtype, device, search_s):
        searched.append(case)
        return tuple(({"backend": f"{which} {case.name}"}, which) for which in ("alone", "both"))

    model, images = natten_models.replace(_model()), torch.randn(2, 3, 96, 96)
    cases = [Case(2, 24, 24, 1, 32, 7), Case(2, 24, 24, 1, 32, 7, dilation=3), Case(2, 12, 12, 2, 32, 7)]
    for training, which in ((True, "both"), (False, "alone")):
        said = natten_models.tune(model, images, torch.float32, training, search=search)
        assert said == "; ".join(f"{case.name}: {which}" for case in cases)
        calls.clear()
        model(images)
        names = [cases[i].name for i in (0, 1, 0, 2)]
        assert calls == [{"backend": f"{which} {name}"} for name in names]
    assert searched == cases, "each shape is searched for once"
    natten_models.tune(model, images[:1], torch.float32, True, search=search)
    assert len(searched) == 2 * len(cases), "another batch is another shape"


@pytest.mark.parametrize("prefix, biased", [("natten/", False), ("unbiased/", False), ("", True)])
def test_prefixes_say_whose_op_a_model_has(prefix, biased):
    with torch.device("meta"):
        model = models.build(f"{prefix}nat_mini", 224)
    assert any(n.endswith("rpb") for n, _ in model.named_parameters()) == biased
    kinds = {NattenAttention, NeighborhoodAttention} & {type(m) for m in model.modules()}
    assert kinds == {NattenAttention if prefix == "natten/" else NeighborhoodAttention}


def test_prefixes_take_nat_and_dinat():
    assert {"nat_tiny", "dinat_tiny", "dinat_s_tiny"} <= set(natten_models.known())
    assert not [name for name in natten_models.known() if "nat_" not in name]


@pytest.mark.parametrize(
    "name, said",
    [
        ("natten/resnet18", "'natten/resnet18': natten/ takes one of dinat_base"),
        ("unbiased/gna_nano", "takes one of"),
        ("reference/resnet18", "reference/ takes a model of visionattn's"),
    ],
)
def test_other_models_are_refused_in_one_line(name, said, capsys):
    assert main(["models", "--models", name, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_without_a_gpu_nattens_kernels_are_refused_in_one_line(tmp_path, capsys):
    out = tmp_path / "models.csv"
    assert main(["models", "--models", "natten/nat_mini", "--device", "cpu", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "cannot measure natten/nat_mini: NATTEN's kernels need a GPU" in error and error.count("\n") == 1
    assert not out.exists()


def test_a_measurement_says_the_configurations_beside_its_figures(calls, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models.natten_peer, "why_not", lambda device: None)
    monkeypatch.setattr(natten_models, "_search", lambda *_: (({}, "alone"), ({}, "both")))
    monkeypatch.setattr(models, "build", lambda name, size: natten_models.replace(_model(num_classes=1000)))
    argv = ["models", "--models", "natten/dinat_mini", "--device", "cpu", "--dtype", "float32", "--batch", "2"]
    assert main([*argv, "--size", "96", "--steps", "1", "--out", str(tmp_path / "models.csv")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("natten/dinat_mini")]
    for line, which in zip(lines, ("both", "alone"), strict=True):
        assert "images/s" in line and f"B2 24x24 h1 d32 k7: {which}; B2 24x24 h1 d32 k7 dilation 3: {which}" in line


@pytest.mark.gpu
def test_nattens_own_op_gives_our_result():
    pytest.importorskip("natten", reason="needs NATTEN")
    reason = models.natten_peer.why_not(torch.device("cuda"))
    if reason:
        pytest.skip(reason)
    x = torch.randn(2, 3, 224, 224, device="cuda")
    ours, double = _model(img_size=224).cuda(), _model(img_size=224).cuda().double()
    theirs = natten_models.replace(_model(img_size=224)).cuda()
    with torch.no_grad():
        expected = double(x.double())
        with torch.autocast("cuda", torch.bfloat16):
            mine = ours(x)
            plain = theirs(x)
            said = natten_models.tune(theirs, x, torch.bfloat16, training=False, search_s=2.0)
            tuned = theirs(x)
    assert said.count(";") == 2 and "own choice" not in said
    error = (mine.double() - expected).abs().max()
    for out in (plain, tuned):
        assert (out.double() - expected).abs().max() <= 2 * error
