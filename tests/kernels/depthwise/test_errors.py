"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import depthwise_conv, explain


def _zeros(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


WRONG = {
    "x-ndim": (dict(x=_zeros(8, 9, 6)), ValueError, r"x must be \[batch, height, width, channels\].*\[8, 9, 6\]"),
    "x-dtype": (dict(x=_zeros(1, 8, 9, 6, dtype=torch.long)), TypeError, "x must be float16.* got torch.int64"),
    "even-side": (dict(weight=_zeros(6, 1, 4, 4)), ValueError, r"odd side, got shape \[6, 1, 4, 4\]"),
    "weight-ndim": (dict(weight=_zeros(6, 3, 3)), ValueError, r"weight must be .* got shape \[6, 3, 3\]"),
    "oblong": (dict(weight=_zeros(6, 1, 5, 3)), ValueError, r"must be .*\[6, 1, 3, 3\], got shape \[6, 1, 5, 3\]"),
    "other-channels": (dict(weight=_zeros(5, 1, 3, 3)), ValueError, r"weight must be .*\[6, 1, 3, 3\], got shape"),
    "weight-device": (dict(weight=_zeros(6, 1, 3, 3, device="meta")), ValueError, "weight must be on .*cpu, got meta"),
    "bias-shape": (dict(bias=_zeros(5)), ValueError, r"bias must be \[channels\] = \[6\], got shape \[5\]"),
    "bias-dtype": (dict(bias=_zeros(6, dtype=torch.long)), TypeError, "bias must be a floating-point tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(x=_zeros(1, 8, 9, 6), weight=_zeros(6, 1, 3, 3)) | change
    with pytest.raises(error, match=message):
        depthwise_conv(**arguments)
    with pytest.raises(error, match=message):
        explain("depthwise_conv", **arguments)
