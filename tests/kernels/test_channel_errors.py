"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import channel_attention, channel_attention_packed, explain


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 32), dtype=dtype, device=device)


WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 32)), ValueError,
               r"q must be \[batch, height, width, channels\], got shape \[8, 9, 32\]"),
    "k-shape": (dict(k=_q(1, 8, 8, 32)), ValueError,
                r"k must have q's shape \[1, 8, 9, 2, 16\], got \[1, 8, 8, 2, 16\]"),
    "v-shape": (dict(v=_q(1, 8, 9, 64)), ValueError,
                r"v must have q's shape \[1, 8, 9, 2, 16\], got \[1, 8, 9, 2, 32\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 32), k=_q(1, 0, 9, 32), v=_q(1, 0, 9, 32)), ValueError,
                  "q must have at least one row and column"),
    "k-dtype": (dict(k=_q(dtype=torch.float64)), TypeError,
                "one dtype, got torch.float32 for q and torch.float64 for k"),
    "integers": (dict.fromkeys("qkv", _q(dtype=torch.int32)), TypeError, "must be float16.* got torch.int32"),
    "v-device": (dict(v=_q(device="meta")), ValueError, "one device, got cpu for q and meta for v"),
    "groups-0": (dict(groups=0), ValueError, "groups must be a positive int, got 0"),
    "groups-float": (dict(groups=2.0), ValueError, "groups must be a positive int, got 2.0"),
    "groups-5": (dict(groups=5), ValueError, r"groups must divide the channels of q, got 5 for shape \[1, 8, 9, 32\]"),
    "small-groups": (dict(groups=8), ValueError, "head dimension of q must lie in 8..256, got 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q(), groups=2) | change
    with pytest.raises(error, match=message):
        channel_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("channel_attention", **arguments)


def test_a_wrong_packed_shape_is_named():
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3 \* channels\], got shape \[1, 8,"):
        channel_attention_packed(torch.zeros(1, 8, 32), 2)
    with pytest.raises(ValueError, match=r"groups must divide the channels of qkv, got 2 .*32\] of 3 tensors side by"):
        channel_attention_packed(_q(), 2)


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    q = torch.zeros(1, 8, 9, 2, 16)
    with pytest.raises(ValueError, match="k must have q's shape"):
        torch.ops.visionattn.channel_attention(q, q[:, :4], q, 1.0)


def test_explain_says_which_groups_are_too_wide_for_the_kernels(fused):
    q = _q(1, 3, 3, 160, device=fused)
    assert explain("channel_attention", q, q, q, groups=2).runs == "fused (triton)"
    wide = explain("channel_attention", q, q, q, groups=1)
    assert wide.runs == "reference" and "160 channels a group are over 128" in str(wide)
    packed = explain("channel_attention_packed", _q(1, 3, 3, 96, device=fused).double(), 1)
    assert packed.runs == "reference" and "float64" in str(packed)
