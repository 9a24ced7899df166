"""The report for bug reports: versions, devices, every op with its reasons, every variable that the code reads."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from visionattn import environment, kernels
from visionattn.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_every_op_answers_for_a_typical_call(device):
    ops = {name for name in kernels.__all__ if not re.search("_packed|explain|referenced", name)}
    assert set(environment.TYPICAL) == ops
    for op, answer in environment.kernels(torch.device(device), torch.float32).items():
        assert answer.startswith(f"{op} runs: {'fused' if device == 'cuda' else 'reference'}"), answer
        assert "fused (triton): " in answer


def test_the_report_names_versions_and_variables(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.delenv("TIMM_FUSED_ATTN", raising=False)
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    for words in (f"torch {torch.__version__.split('+')[0]}", "timm 1.", "CUDA_LAUNCH_BLOCKING=1"):
        assert words in text
    assert "TIMM_FUSED_ATTN" in text.partition("not set: ")[2]
    assert "Error" not in text


def test_a_failing_op_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setitem(environment.TYPICAL, "linear_attention", ("", ((1, 2, 3),) * 3, {}))
    said = environment.kernels(torch.device("cpu"), torch.float32)
    assert said["linear_attention"].startswith("linear_attention: ValueError: q must be")


def test_no_variable_that_the_code_reads_is_forgotten():
    sources = [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "visionattn").glob("[!k]*/**/*.py")]
    read = {name for path in sources for name in re.findall(r'"(VISIONATTN_\w+)"', path.read_text())}
    assert read and read <= set(environment.VARIABLES)


@pytest.mark.parametrize("argv, words", [([], "typical calls"), (["models", "gna_nano"], "gna_nano")])
def test_python_m_prints_the_report_and_takes_the_commands(argv, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["visionattn", *argv])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("visionattn", run_name="__main__")
    assert not leaving.value.code and words in capsys.readouterr().out


def test_an_option_it_does_not_know_is_one_line(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["env", "--fast"])
    assert leaving.value.code == 2 and capsys.readouterr().err.count("\n") == 1
