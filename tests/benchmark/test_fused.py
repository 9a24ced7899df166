"""Models of timm before and after fuse: attention's share as the profiler sees it, Amdahl's arithmetic, the command."""

import csv
import time

import pytest
import timm
import torch
from torch import nn

from visionattn import fuse
from visionattn.benchmark import fused, models, records, share
from visionattn.benchmark.cli import main

NAME = "test_maxvit"


def test_amdahls_law():
    found = share.Share(all_ms=10.0, attention_ms=4.0)
    assert found.part == 0.4
    assert found.bound() == pytest.approx(10 / 6)
    assert found.predicted(1.0) == pytest.approx(10 / 7) and found.predicted(4.0) == 1


def _step(model, x):
    def step():
        model(x).square().mean().backward()
        model.zero_grad()

    return step


class Slow(torch.autograd.Function):
    """Takes 30 ms there and 60 ms back."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.03)
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.06)
        return grad * 1


@pytest.mark.parametrize("where, counts", [("attn", True), ("attn.proj", False), ("norm1", False), ("mlp", False)])
def test_what_counts_is_attention_between_its_projections_there_and_back(where, counts):
    from timm.models.swin_transformer import SwinTransformerBlock

    for mend in (lambda m: m, fuse):
        block = SwinTransformerBlock(16, (14, 14), 2, 7)
        mend(block)
        slow = block.get_submodule(where)
        slow.register_forward_hook(lambda m, inputs, out: Slow.apply(out))
        found = share.measure(nn.Sequential(block), _step(block, torch.randn(1, 14, 14, 16)))
        assert found.all_ms > 85
        assert (found.attention_ms > 85) if counts else (found.attention_ms < 60)


def test_a_model_without_attention_cannot_be_measured():
    model = timm.create_model("test_resnet")
    with pytest.raises(ValueError, match="attention that visionattn.fuse takes"):
        share.measure(model, lambda: None)


def test_hooks_are_gone_afterwards():
    model = timm.create_model(NAME, img_size=96)
    share.measure(model, _step(model, torch.randn(1, 3, 96, 96)), steps=1)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_fused_models_are_built_fused_and_others_are_refused():
    model = models.build("fused/test_maxvit", 96)
    assert any(type(m).__module__.startswith("visionattn.fusing") for m in model.modules())
    assert models.timm_name("fused/davit_tiny") == "davit_tiny"
    with pytest.raises(models.UserError, match="fused/test_resnet.*nothing to fuse"):
        models.check_names(["fused/test_resnet"], torch.device("cpu"))


def test_a_wrong_result_stops_the_measuring(monkeypatch):
    from visionattn.fusing.maxvit import FusedPartition

    right = FusedPartition._partition_attn
    monkeypatch.setattr(FusedPartition, "_partition_attn", lambda self, x: 1.5 * right(self, x))
    with pytest.raises(models.UserError, match="fused test_maxvit in torch.bfloat16 is wrong"):
        fused.agreement(NAME, 96, torch.device("cpu"), torch.bfloat16)


def test_the_command_writes_lines_and_prints_the_table(tmp_path, capsys):
    path = tmp_path / "cpu_fused.csv"
    few = ["--size", "64", "--batch", "1", "--steps", "1", "--device", "cpu", "--dtype", "float32"]
    assert main(["fused", "--models", NAME, *few, "--out", str(path)]) == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["timm/test_maxvit", "fused/test_maxvit"]
    assert tuple(rows[0]) == records.FUSED_COLUMNS
    for row in rows:
        assert 0 < float(row["attention_ms"]) < float(row["device_ms"]) and float(row["images_per_s"]) > 0
    assert "from float32: output" in rows[1]["note"]
    table = fused.render(rows, [NAME])
    assert table in capsys.readouterr().out and table.count("\n") == 2 and "| test_maxvit |" in table
    assert fused.section(path).endswith(table) and "float32, batch 1, training, torch " in fused.section(path)
    assert main(["plot", str(path), "--out-dir", str(tmp_path)]) == 0
    assert (tmp_path / "cpu_fused.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--models", "test_resnet"], "nothing to fuse"),
        (["--models", "swim"], "no model is named"),
        (["--models", NAME, "--compile", "davit_tiny"], "--compile takes names of --models, got davit_tiny"),
    ],
)
def test_mistakes_are_one_line(argv, words, tmp_path, capsys):
    assert main(["fused", *argv, "--device", "cpu", "--out", str(tmp_path / "x.csv")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
