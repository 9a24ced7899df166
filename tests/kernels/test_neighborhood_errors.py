"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, neighborhood_attention, neighborhood_attention_packed


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


def _extra(k: torch.Tensor | None = None, v: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return dict(extra_k=_q(1, 3, 2, 16) if k is None else k, extra_v=_q(1, 3, 2, 16) if v is None else v)


WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "v-ndim": (dict(v=_q(1, 8, 9, 32)), ValueError, r"v must be .*\[1, 8, 9, 32\]"),
    "k-shape": (dict(k=_q(1, 8, 8, 2, 16)), ValueError,
                r"k must have q's shape \[1, 8, 9, 2, 16\], got \[1, 8, 8, 2, 16\]"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have q's shape .*\[1, 8, 9, 1, 16\]"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "int-dtype": (dict(q=_q(dtype=torch.int32), k=_q(dtype=torch.int32), v=_q(dtype=torch.int32)), TypeError,
                  "must be float16, bfloat16, float32 or float64, got torch.int32"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "small-head": (dict(q=_q(1, 8, 9, 2, 4), k=_q(1, 8, 9, 2, 4)), ValueError,
                   r"head dimension of q must lie in 8..256, got 4"),
    "large-head": (dict(v=_q(1, 8, 9, 2, 257)), ValueError, r"head dimension of v must lie in 8..256, got 257"),
    "kernel-0": (dict(kernel_size=0), ValueError, "kernel_size must be at least 1, got 0"),
    "kernel-float": (dict(kernel_size=7.0), TypeError, "kernel_size must be an int or a pair of ints .* got 7.0"),
    "kernel-triple": (dict(kernel_size=(3, 3, 3)), TypeError, r"kernel_size must be .* got \(3, 3, 3\)"),
    "dilation-0": (dict(dilation=(1, 0)), ValueError, r"dilation must be at least 1, got \(1, 0\)"),
    "stride-0": (dict(stride=0), ValueError, "stride must lie between 1 and kernel_size per axis, got 0"),
    "stride-4": (dict(stride=4), ValueError,
                 "stride must lie between 1 and kernel_size per axis, got 4 for kernel_size 3"),
    "map-height": (dict(kernel_size=9), ValueError, r"9 \* 1 = 9 > 8 \(height\)"),
    "map-width": (dict(dilation=(1, 4)), ValueError, r"3 \* 4 = 12 > 9 \(width\)"),
    "bias-shape": (dict(bias=torch.zeros(2, 5, 4)), ValueError, r"bias must be .*\[2, 5, 5\], got shape \[2, 5, 4\]"),
    "bias-heads": (dict(bias=torch.zeros(1, 5, 5)), ValueError, r"bias must be .*\[2, 5, 5\], got shape \[1, 5, 5\]"),
    "bias-dtype": (dict(bias=torch.zeros(2, 5, 5, dtype=torch.long)), TypeError,
                   "floating-point tensor, got torch.int64"),
    "bias-device": (dict(bias=torch.zeros(2, 5, 5, device="meta")), ValueError,
                    "bias must be on q's device cpu, got meta"),
    "causal-int": (dict(is_causal=1), TypeError, "is_causal must be a bool or a pair of bools .* got 1"),
    "causal-triple": (dict(is_causal=(True,) * 3), TypeError, r"is_causal must be .* got \(True, True, True\)"),
    "extra-alone": (dict(extra_v=_q(1, 3, 2, 16)), ValueError,
                    "extra_k and extra_v must be given together, got extra_v and None for extra_k"),
    "extra-heads": (_extra(_q(1, 3, 1, 16)), ValueError,
                    r"extra_k must be \[batch, tokens, heads, head_dim\] = \[1, 1 or more, 2, 16\], got shape "
                    r"\[1, 3, 1, 16\]"),
    "extra-ndim": (_extra(_q(1, 3, 1, 2, 16)), ValueError, r"extra_k must be .* got shape \[1, 3, 1, 2, 16\]"),
    "extra-none": (_extra(_q(1, 0, 2, 16)), ValueError, r"extra_k must be .*1 or more.* got shape \[1, 0, 2, 16\]"),
    "extra-batch": (_extra(v=_q(2, 3, 2, 16)), ValueError, r"extra_v must be .* got shape \[2, 3, 2, 16\]"),
    "extra-tokens": (_extra(v=_q(1, 4, 2, 16)), ValueError, "extra_v must hold as many tokens as extra_k, 3, got 4"),
    "extra-dtype": (_extra(v=_q(1, 3, 2, 16, dtype=torch.float64)), TypeError,
                    "extra_v must have q's dtype torch.float32, got torch.float64"),
    "extra-device": (_extra(_q(1, 3, 2, 16, device="meta")), ValueError, "extra_k must be on q's device cpu, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q(), kernel_size=3) | change
    with pytest.raises(error, match=message):
        neighborhood_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("neighborhood_attention", **arguments)


@pytest.mark.parametrize("shape", [(1, 8, 9, 2, 2, 16), (1, 8, 9, 3, 32)])
def test_a_wrong_packed_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3, heads, head_dim\], got shape"):
        neighborhood_attention_packed(torch.zeros(shape), 3)


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    with pytest.raises(ValueError, match="k must have q's shape"):
        torch.ops.visionattn.neighborhood_attention(_q(), _q(1, 8, 8, 2, 16), _q(), None, None, None,
                                                     [3, 3], [1, 1], [1, 1], [False, False], 1.0)
