"""Every wrong argument gets an exception that names it, what it was, and what is allowed."""
import pytest
import torch

from visionattn.kernels import explain, routed_attention, routed_attention_packed, routed_attention_packed_qk


def _q(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape or (1, 8, 9, 2, 16), dtype=dtype, device=device)


ROUTES = torch.zeros(1, 6, 2, dtype=torch.long)
WRONG = {
    "q-ndim": (dict(q=_q(8, 9, 2, 16)), ValueError,
               r"q must be \[batch, height, width, heads, head_dim\].*\[8, 9, 2, 16\]"),
    "q-shape": (dict(q=_q(1, 8, 8, 2, 16)), ValueError, r"q must have k's shape .*, got \[1, 8, 8, 2, 16\]"),
    "v-shape": (dict(v=_q(1, 8, 9, 1, 16)), ValueError, r"v must have k's shape .*\[1, 8, 9, 1, 16\]"),
    "empty-map": (dict(q=_q(1, 0, 9, 2, 16), k=_q(1, 0, 9, 2, 16), v=_q(1, 0, 9, 2, 16)), ValueError,
                  "k must have at least one row and column"),
    "dtype": (dict(v=_q(dtype=torch.float16)), TypeError, "one dtype, got torch.float32 for q and torch.float16 for v"),
    "regions-0": (dict(regions=(0, 3)), ValueError, r"regions must be at least 1 along each axis, got \(0, 3\)"),
    "regions-float": (dict(regions=2.0), TypeError, "regions must be an int or a pair of ints .* got 2.0"),
    "routes-none": (dict(routes=None), TypeError, "routes must be an int32 or int64 tensor, got None"),
    "routes-float": (dict(routes=ROUTES.float()), TypeError, "int32 or int64 tensor, got torch.float32"),
    "routes-shape": (dict(routes=ROUTES[:, :4]), ValueError,
                     r"routes must be \[batch, regions, topk\] = \[1, 6, at least 1\], got shape \[1, 4, 2\]"),
    "routes-batch": (dict(routes=ROUTES.expand(2, 6, 2)), ValueError, r"got shape \[2, 6, 2\]"),
    "routes-to-none": (dict(routes=ROUTES[:, :, :0]), ValueError, r"at least 1\], got shape \[1, 6, 0\]"),
    "routes-device": (dict(routes=ROUTES.to("meta")), ValueError, "routes must be on q's device cpu, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    change, error, message = WRONG[case]
    arguments = dict(q=_q(), k=_q(), v=_q(), routes=ROUTES, regions=(2, 3)) | change
    with pytest.raises(error, match=message):
        routed_attention(**arguments)
    with pytest.raises(error, match=message):
        explain("routed_attention", **arguments)


def test_a_wrong_packed_shape_is_named():
    with pytest.raises(ValueError, match=r"qkv must be \[batch, height, width, 3, heads, head_dim\], got shape"):
        routed_attention_packed(_q(1, 8, 9, 2, 2, 16), ROUTES, (2, 3))
    with pytest.raises(ValueError, match=r"qk must be \[batch, height, width, 2, heads, head_dim\], got shape"):
        routed_attention_packed_qk(_q(1, 8, 9, 3, 2, 16), _q(), ROUTES, (2, 3))


def test_a_wrong_argument_is_named_by_the_torch_operator_too():
    with pytest.raises(ValueError, match="q must have k's shape"):
        torch.ops.visionattn.routed_attention(_q(), _q(1, 8, 8, 2, 16), _q(1, 8, 8, 2, 16), ROUTES, [2, 3], 1.0)


def test_a_region_that_no_kernel_walks_says_so(fused):
    x = torch.empty(1, 1, device=fused).expand(1, 2048, 2048, 1, 8)
    routes = torch.zeros(1, 1, 1, dtype=torch.long, device=fused)
    assert "regions of 4194304 tokens" in str(explain("routed_attention", x, x, x, routes, 1))
