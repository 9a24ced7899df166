"""What runs is never a riddle: `explain` says it, and a GPU that runs a reference warns."""
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from visionattn.kernels import _dispatch, explain, neighborhood_attention, referenced

ROOT = Path(__file__).parents[2]


def _python(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    import os
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "VISIONATTN_INTERPRET")}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=kept | {"PYTHONPATH": str(ROOT)} | environment,
                          capture_output=True, text=True, timeout=300)


def _qkv(device="cpu", dtype=torch.float32):
    return [torch.zeros(1, 5, 5, 1, 16, device=device, dtype=dtype) for _ in range(3)]


def test_explain_on_a_cpu_says_why_not_fused():
    found = explain("neighborhood_attention", *_qkv(), kernel_size=3)
    assert found.runs == "reference"
    assert "need a CUDA device, and q is on cpu" in str(found)
    assert str(found).splitlines()[0] == "neighborhood_attention runs: reference"


def test_explain_where_the_kernels_run(fused):
    q, k, v = _qkv(fused)
    assert explain("neighborhood_attention", q, k, v, 3).runs == "fused (triton)"
    packed = explain("neighborhood_attention_packed", torch.stack((q, k, v), 3), 3, stride=2)
    assert packed.runs == "fused (triton)"
    double = explain("neighborhood_attention", *_qkv(fused, torch.float64), 3)
    assert double.runs == "reference" and "float64" in str(double)


def test_explain_of_windows_where_the_kernels_run(fused):
    q, k, v = _qkv(fused)
    kv = torch.stack((k, v), 3)
    assert explain("window_attention", q, k, v, 3, shift=1).runs == "fused (triton)"
    assert explain("window_attention_packed", torch.stack((q, k, v), 3), 2, partition="grid").runs == "fused (triton)"
    assert explain("window_attention_packed_kv", q[:, :3, :3], kv, 3).runs == "fused (triton)"
    double = explain("window_attention", *_qkv(fused, torch.float64), 3)
    assert double.runs == "reference" and "float64" in str(double)


def test_explain_refuses_an_unknown_op():
    with pytest.raises(ValueError, match="op must be one of .*neighborhood_attention_packed.*, got 'attention'"):
        explain("attention")


def test_a_gpu_that_has_to_run_the_reference_warns_once_a_reason(monkeypatch):
    _dispatch._warn_once.cache_clear()
    op = SimpleNamespace(name="some_attention", fused="nowhere")
    monkeypatch.setattr(_dispatch, "fused_refuses", lambda *args: "it is Tuesday")
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    with pytest.warns(RuntimeWarning, match="some_attention runs its reference.*slow: it is Tuesday"):
        assert not _dispatch.takes_fused(op, on_gpu, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _dispatch.takes_fused(op, on_gpu, None, None)


def test_references_run_where_they_are_asked_for_and_nowhere_else(fused):
    qkv = [torch.randn(1, 5, 5, 1, 16, device=fused, requires_grad=True) for _ in range(3)]

    def is_fused():
        return type(neighborhood_attention(*qkv, 3).grad_fn).__name__ == "NeighborhoodAttentionBackward"

    assert is_fused()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with referenced():
            assert not is_fused()  # though the call is remembered
            with referenced():
                pass
            assert not is_fused()
    assert is_fused()


@pytest.mark.gpu
def test_float64_on_a_gpu_runs_the_reference_and_warns():
    _dispatch._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="reference implementation on a GPU.*float64"):
        assert neighborhood_attention(*_qkv("cuda", torch.float64), 3).dtype == torch.float64


def test_the_interpreter_is_only_entered_where_triton_can(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), _dispatch.interpreted():
        pass


def test_importing_and_a_call_on_a_cpu_need_torch_alone_and_no_fused_kernels():
    # triton itself may be there: torch's FLOP counter imports it where it is installed
    code = ("import sys; import visionattn.kernels.neighborhood; import torch\n"
            "x = torch.zeros(1, 5, 5, 1, 16); visionattn.kernels.neighborhood_attention(x, x, x, 3)\n"
            "print(sorted({'timm', 'torchvision', 'visionattn.kernels._attend'} & set(sys.modules)))")
    package = ("import sys, types; p = types.ModuleType('visionattn'); p.__path__ = ['visionattn']\n"
               "sys.modules['visionattn'] = p\n")      # the kernels without the models beside them
    found = _python(package + code)
    assert found.stdout.strip() == "[]", found.stderr


def test_the_folder_refuses_the_bare_name():
    found = _python("import kernels")
    assert "ImportError: import visionattn.kernels, not kernels" in found.stderr


def test_without_triton_the_reference_runs_and_explain_says_so():
    found = _python(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import torch; from visionattn.kernels import explain\n"
        "x = torch.zeros(1, 5, 5, 1, 16); print(explain('neighborhood_attention', x, x, x, 3))",
        VISIONATTN_INTERPRET="1")
    assert "runs: reference" in found.stdout and "triton is not installed" in found.stdout, found.stderr
