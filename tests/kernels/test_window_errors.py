"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, window_attention, window_attention_packed, window_attention_packed_kv


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "q-shape": (dict(q=_q(1, 4, 4, 2, 16)), ValueError,
                r"q must have k's shape \[1, 8, 9, 2, 16\], or be one window \[1, 3, 3, 2, 16\] shared by all windows, "
                r"got \[1, 4, 4, 2, 16\]"),
    "shared-shift": (dict(q=_q(1, 3, 3, 2, 16), shift=1), ValueError,
                     r"shift must be 0 where q is one window shared by all windows, got \(1, 1\)"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have k's shape .*\[1, 8, 9, 1, 16\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 2, 16), k=_q(1, 0, 9, 2, 16), v=_q(1, 0, 9, 2, 16)), ValueError,
                  "k must have at least one row and column"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "large-head": (dict(v=_q(1, 8, 9, 2, 257)), ValueError, r"head dimension of v must lie in 8..256, got 257"),
    "window-0": (dict(window_size=0), ValueError, "window_size must be at least 1, got 0"),
    "window-float": (dict(window_size=7.0), TypeError, "window_size must be an int or a pair of ints .* got 7.0"),
    "shift-negative": (dict(shift=-1), ValueError, "shift must lie in 0..window_size - 1 per axis, got -1"),
    "shift-large": (dict(shift=(0, 3)), ValueError, r"shift must lie in 0..window_size - 1 .* got \(0, 3\) for .* 3"),
    "grid-shift": (dict(shift=1, partition="grid"), ValueError, 'shift must be 0 with partition="grid", got 1'),
    "partition": (dict(partition="blocks"), ValueError, "partition must be \"block\" or \"grid\", got 'blocks'"),
    "bias-shape": (dict(bias=torch.zeros(2, 5, 6)), ValueError, r"bias must be .*\[2, 9, 9\], got shape \[2, 5, 6\]"),
    "bias-dtype": (dict(bias=torch.zeros(2, 9, 9, dtype=torch.long)), TypeError,
                   "floating-point tensor, got torch.int64"),
    "bias-device": (dict(bias=torch.zeros(2, 9, 9, device="meta")), ValueError,
                    "bias must be on q's device cpu, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q(), window_size=3) | change
    with pytest.raises(error, match=message):
        window_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("window_attention", **arguments)


def test_a_wrong_packed_shape_is_named():
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3, heads, head_dim\], got shape"):
        window_attention_packed(torch.zeros(1, 8, 9, 2, 2, 16), 3)
    with pytest.raises(ValueError, match=r"kv must be \[batch, height, width, 2, heads, head_dim\], got shape"):
        window_attention_packed_kv(_q(), torch.zeros(1, 8, 9, 3, 2, 16), 3)


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    with pytest.raises(ValueError, match="q must have k's shape"):
        torch.ops.visionattn.window_attention(_q(), _q(1, 8, 8, 2, 16), _q(1, 8, 8, 2, 16), None, [3, 3], [0, 0],
                                              False, 1.0)
