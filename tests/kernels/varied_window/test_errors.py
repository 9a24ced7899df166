"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, varied_window_attention, varied_window_attention_packed


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


SAMPLING = r"sampling must be \[batch, windows_h, windows_w, heads, 4\] for windows of \(4, 4\) on a map of 8 x 9 = "
WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "q-shape": (dict(q=_q(1, 4, 4, 2, 16)), ValueError,
                r"q must have k's shape \[1, 8, 9, 2, 16\], got \[1, 4, 4, 2, 16\]"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have k's shape .*\[1, 8, 9, 1, 16\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 2, 16), k=_q(1, 0, 9, 2, 16), v=_q(1, 0, 9, 2, 16)), ValueError,
                  "k must have at least one row and column"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "large-head": (dict(v=_q(1, 8, 9, 2, 257)), ValueError, r"head dimension of v must lie in 8..256, got 257"),
    "window-0": (dict(window_size=0), ValueError, "window_size must be at least 1, got 0"),
    "window-float": (dict(window_size=4.0), TypeError, "window_size must be an int or a pair of ints .* got 4.0"),
    "sampling-none": (dict(sampling=None), TypeError, r"sampling must be a tensor \[1, 2, 3, 2, 4\], got None"),
    "sampling-shape": (dict(sampling=torch.zeros(1, 2, 2, 2, 4)), ValueError,
                       SAMPLING + r"\[1, 2, 3, 2, 4\], got shape \[1, 2, 2, 2, 4\]"),
    "sampling-dtype": (dict(sampling=torch.zeros(1, 2, 3, 2, 4, dtype=torch.long)), TypeError,
                       "sampling must be a floating-point tensor, got torch.int64"),
    "sampling-device": (dict(sampling=torch.zeros(1, 2, 3, 2, 4, device="meta")), ValueError,
                        "sampling must be on q's device cpu, got meta"),
    "bias-shape": (dict(bias=torch.zeros(2, 7, 6)), ValueError,
                   r"bias must be a table .* or \[heads, window_h \* window_w, .* = \[2, 16, 16\], got .*\[2, 7, 6\]"),
    "table-heads": (dict(bias=torch.zeros(3, 7, 7)), ValueError,
                    r"bias must be \[heads, 2 \* window_h - 1, 2 \* window_w - 1\] = \[2, 7, 7\], got .*\[3, 7, 7\]"),
    "bias-device": (dict(bias=torch.zeros(2, 7, 7, device="meta")), ValueError, "bias must be on q's device cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q(), window_size=4, sampling=torch.zeros(1, 2, 3, 2, 4)) | change
    with pytest.raises(error, match=message):
        varied_window_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("varied_window_attention", **arguments)


@pytest.mark.parametrize("shape", [(1, 8, 9, 2, 16), (1, 8, 9, 2, 2, 16)])
def test_a_wrong_packed_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3, heads, head_dim\], got shape"):
        varied_window_attention_packed(torch.zeros(shape), 4, torch.zeros(1, 2, 3, 2, 4))


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    with pytest.raises(ValueError, match=SAMPLING):
        torch.ops.visionattn.varied_window_attention(_q(), _q(), _q(), torch.zeros(1), None, [4, 4], 1.0)


def test_a_window_that_no_kernel_holds_says_so(fused):
    q, places = torch.zeros(1, 2, 2, 1, 8, device=fused), torch.zeros(1, 1, 1, 1, 4, device=fused)
    said = explain("varied_window_attention", q, q, q, 9, places)
    assert said.runs == "reference" and "81 positions, over 64" in str(said)
