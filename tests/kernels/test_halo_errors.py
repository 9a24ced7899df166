"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, halo_attention, halo_attention_packed_kv


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "q-shape": (dict(q=_q(1, 4, 5, 2, 16)), ValueError,
                r"q must have k's shape .* stride \(1, 1\) and rounded up: \[1, 8, 9, 2, 16\], got \[1, 4, 5, 2, 16\]"),
    "q-stride": (dict(stride=2), ValueError, r"\(2, 2\) and rounded up: \[1, 4, 5, 2, 16\], got \[1, 8, 9, 2, 16\]"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have k's shape .*\[1, 8, 9, 1, 16\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 2, 16), k=_q(1, 0, 9, 2, 16), v=_q(1, 0, 9, 2, 16)), ValueError,
                  "k must have at least one row and column"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "large-head": (dict(v=_q(1, 8, 9, 2, 257)), ValueError, r"head dimension of v must lie in 8..256, got 257"),
    "block-0": (dict(block_size=0), ValueError, "block_size must be at least 1, got 0"),
    "block-float": (dict(block_size=4.0), TypeError, "block_size must be an int or a pair of ints .* got 4.0"),
    "halo-negative": (dict(halo_size=(1, -1)), ValueError, r"halo_size must be at least 0, got \(1, -1\)"),
    "stride": (dict(stride=(1, 3)), ValueError, r"stride must divide block_size per axis, got \(1, 3\) for .* 4"),
    "stride-0": (dict(stride=0), ValueError, "stride must divide block_size per axis, got 0"),
    "rel_h-none": (dict(rel_h=None), TypeError, r"rel_h must be a tensor \[11, 16\], got None"),
    "rel_h-shape": (dict(rel_h=torch.zeros(9, 16)), ValueError,
                    r"rel_h must be .* window_h = block \+ 2 \* halo = 6, = \[11, 16\], got shape \[9, 16\]"),
    "rel_w-shape": (dict(rel_w=torch.zeros(11, 8)), ValueError, r"rel_w must be .*\[11, 16\], got shape \[11, 8\]"),
    "rel_w-dtype": (dict(rel_w=torch.zeros(11, 16, dtype=torch.long)), TypeError,
                    "rel_w must be a floating-point tensor, got torch.int64"),
    "rel_h-device": (dict(rel_h=torch.zeros(11, 16, device="meta")), ValueError,
                     "rel_h must be on q's device cpu, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    table = torch.zeros(11, 16)
    arguments = dict(q=_q(), k=_q(), v=_q(), block_size=4, halo_size=1, rel_h=table, rel_w=table) | change
    with pytest.raises(error, match=message):
        halo_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("halo_attention", **arguments)


@pytest.mark.parametrize("shape", [(1, 8, 9, 2, 16), (1, 8, 9, 2, 2, 16)])
def test_a_wrong_packed_shape_is_named(shape):
    table = torch.zeros(11, 16)
    with pytest.raises(ValueError, match=r"kv must be \[batch, height, width, heads, head_dim \+ head_dim_v\] with q's "
                                         r"head_dim 16, got shape"):
        halo_attention_packed_kv(_q(), torch.zeros(shape), 4, 1, table, table)


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    table = torch.zeros(11, 16)
    with pytest.raises(ValueError, match="q must have k's shape"):
        torch.ops.visionattn.halo_attention(_q(), _q(1, 8, 8, 2, 16), _q(1, 8, 8, 2, 16), table, table, [4, 4], [1, 1],
                                            [1, 1], 1.0)


def test_a_window_that_no_kernel_holds_says_so(fused):
    q, table = torch.zeros(1, 2, 2, 1, 8, device=fused), torch.zeros(131, 8, device=fused)
    assert "is over 64 along an axis" in str(explain("halo_attention", q, q, q, 2, 32, table, table))
