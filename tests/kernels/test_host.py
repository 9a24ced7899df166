"""The kernels' host side: what it refuses since 32 bits cannot count it, and torch's settings that it must stand."""
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")


def test_a_map_may_take_less_than_2_to_the_31_units_of_memory(monkeypatch):
    from visionattn.kernels import _host

    monkeypatch.setattr(_host, "INTERPRETED", True)      # these maps are nowhere

    def reason(rows: int, *strides: int, dim: int = 32) -> str | None:
        t = torch.empty_strided((2, rows, 4096, 8, dim), strides, device="meta", dtype=torch.bfloat16)
        return _host.unsupported(t, t, t)

    row = 4096 * 3 * 8 * 32
    assert reason(4096, 4096 * row, row, 3 * 8 * 32, 32, 1) is None              # 13e9 elements, in units of 8
    assert "units of memory" in reason(4096, 16 * 4096 * row, 16 * row, 48 * 8 * 32, 32, 1)
    assert "units of memory" in reason(4096, 4096 * (row + 1), row + 1, 3 * 8 * 32, 32, 1)  # of 1
    assert "units of memory" in reason(2**15, 2**32, 2**17, 32, 4, 1, dim=9)     # out lies closer, in units of 1
    near = torch.empty_strided((2, 4096, 4096, 8, 32), (4096 * row, row, 3 * 8 * 32, 32, 1), device="meta")
    odd = torch.empty_strided((2, 4096, 4096, 8, 32), (4096 * (row + 1), row + 1, 256, 32, 1), device="meta")
    assert _host.unsupported(near, near, near) is None
    assert "units of memory" in _host.unsupported(near, odd, near)                # one tensor's strides are all's unit


def test_gradients_lie_as_those_of_packed_tensors_may(monkeypatch):
    from visionattn.kernels import _host

    monkeypatch.setattr(_host, "INTERPRETED", True)
    one = torch.empty(1, 2**10, 2**10, 64, 128, device="meta")                        # 2^30 units
    assert _host.unsupported(one[:, :600], one[:, :600], one[:, :600]) is None
    assert "units of memory" in _host.unsupported(one, one, one)


def test_tensors_of_extra_tokens_are_asked_too(monkeypatch):
    from visionattn.kernels import _host
    from visionattn.kernels.neighborhood import extra

    monkeypatch.setattr(_host, "INTERPRETED", True)
    q = torch.empty(1, 2**10, 2**10, 32, 32, device="meta")                           # 2^27 units of 8, 2^30 of 1
    odd = torch.empty_strided((1, 4, 32, 32), (4 * 32 * 33, 32 * 33, 33, 1), device="meta")
    assert extra.unsupported(q, q, q, None, q[:, 0, :4], q[:, 0, :4], None) is None
    assert "units of memory" in extra.unsupported(q, q, q, None, odd, odd, None)


def test_a_bias_of_more_numbers_than_32_bits_count_is_refused(monkeypatch):
    from visionattn.kernels import _host
    from visionattn.kernels.window import fused

    monkeypatch.setattr(_host, "INTERPRETED", True)
    q = torch.empty(1, 128, 128, 8, 32, device="meta")
    assert "the bias has" in fused.unsupported(q, q, q, torch.empty(8, 2**14, 2**14, device="meta"), None)
    assert fused.unsupported(q, q, q, torch.empty(4, 2**14, 2**14 - 1, device="meta"), None) is None


def test_channels_whose_tokens_lie_too_far_apart_are_refused(monkeypatch):
    from visionattn.kernels import _host
    from visionattn.kernels.channel import fused

    monkeypatch.setattr(_host, "INTERPRETED", True)
    far = torch.empty_strided((1, 1, 2, 1, 32), (2**33, 2**33, 2**32, 32, 1), device="meta")
    assert "numbers apart" in fused.unsupported(far, far, far)


def test_an_operator_chosen_before_its_sizes_were_known_asks_again(fused, monkeypatch):
    from visionattn.kernels import _host

    q = torch.randn(1, 3, 5, 1, 16, device=fused)
    arguments = (q, q, q, None, None, None, [2, 2], [1, 1], [1, 1], [False, False], 0.25)
    monkeypatch.setattr(_host, "FAR", 2)
    with pytest.raises(RuntimeError, match="neighborhood_attention_forward cannot run: .* units of memory"):
        torch.ops.visionattn.neighborhood_attention_forward(*arguments)


def test_any_default_dtype_gives_the_same_bits(smallest, fused):
    tensors = smallest.draw(fused, 0)
    expected, before = smallest.results(tensors), torch.get_default_dtype()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            for x, y in zip(smallest.results(tensors), expected, strict=True):
                assert x.dtype == torch.float32 and torch.equal(x, y)
    finally:
        torch.set_default_dtype(before)


SETTINGS = """
import torch
from visionattn.kernels._dispatch import tf32
assert not tf32()
torch.backends.cuda.matmul.allow_tf32 = True
assert tf32()
torch.set_float32_matmul_precision("highest")
assert not tf32()
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert tf32()
torch.backends.cuda.matmul.fp32_precision = "ieee"
assert not tf32()
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="needs torch 2.9")
def test_every_way_to_allow_tf32_is_understood():
    subprocess.run([sys.executable, "-c", SETTINGS], check=True)     # whoever mixes them cannot go back
