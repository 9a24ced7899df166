"""What the kernels' host side refuses: maps whose memory 32 bits of units cannot count."""
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
