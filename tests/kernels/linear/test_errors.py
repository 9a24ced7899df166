"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, linear_attention, linear_attention_packed


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "k-shape": (dict(k=_q(1, 8, 8, 2, 16)), ValueError, r"k must have q's shape \[1, 8, 9, 2, 16\], got"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have q's shape .*\[1, 8, 9, 1, 16\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 2, 16), k=_q(1, 0, 9, 2, 16), v=_q(1, 0, 9, 2, 16)), ValueError,
                  "q must have at least one row and column"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "large-head": (dict(v=_q(1, 8, 9, 2, 257)), ValueError, r"head dimension of v must lie in 8..256, got 257"),
    "grid-large": (dict(grid=(8, 10)), ValueError, r"grid must be .* at most the 8 x 9 tokens of q, got \(8, 10\)"),
    "grid-empty": (dict(grid=(0, 3)), ValueError, r"grid must be at least one row and column, .* got \(0, 3\)"),
    "grid-int": (dict(grid=3), TypeError, "grid must be a pair of ints .* got 3"),
    "residual-shape": (dict(residual=_q(1, 2, 16, 9)), ValueError,
                       r"residual must be .*\[1, 2, 16, 3, 3\], got shape \[1, 2, 16, 9\]"),
    "residual-dtype": (dict(residual=_q(1, 2, 16, 3, 3, dtype=torch.long)), TypeError,
                       "floating-point tensor, got torch.int64"),
    "residual-device": (dict(residual=_q(1, 2, 16, 3, 3, device="meta")), ValueError,
                        "residual must be on q's device cpu, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q()) | change
    with pytest.raises(error, match=message):
        linear_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("linear_attention", **arguments)


def test_a_wrong_packed_shape_is_named():
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3, heads, head_dim\], got shape"):
        linear_attention_packed(torch.zeros(1, 8, 9, 2, 2, 16))


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    with pytest.raises(ValueError, match="k must have q's shape"):
        torch.ops.visionattn.linear_attention(_q(), _q(1, 8, 8, 2, 16), _q(1, 8, 8, 2, 16), None, [8, 9], 1.0)
