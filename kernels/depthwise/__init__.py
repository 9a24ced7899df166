"""Depthwise convolution of maps in the memory order of attention: the local terms of VSA, BiFormer and DaViT.
README.md has the maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias
from .._register import AttentionOp, Form, register
from . import reference


def _check(x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    if x.ndim != 4:
        raise ValueError(f"x must be [batch, height, width, channels], got shape {list(x.shape)}")
    if not x.dtype.is_floating_point or x.dtype.itemsize == 1:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    side = weight.shape[-1] if weight.ndim == 4 else 0
    if weight.ndim != 4 or side % 2 == 0:
        raise ValueError("weight must be [channels, 1, side, side] with an odd side, "
                         f"got shape {list(weight.shape)}")  # fmt: skip
    check_bias(weight, x, "[channels, 1, side, side]", (x.shape[3], 1, side, side), "weight")
    if bias is not None:
        check_bias(bias, x, "[channels]", (x.shape[3],))


def _shapes(x: Tensor, _k: Tensor, _v: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> tuple:
    return x.shape, (0,)


def _pairs(x: tuple, _v: tuple, weight: tuple, bias: tuple | None, residual: bool) -> int:
    """(position, tap) pairs, each a product a channel."""
    batch, height, width, _ = x
    return batch * height * width * weight[2] * weight[3]


# The registry's ops take q, k and v; this one has one map, which stands for all three.
_MAP = Form("", ("x",), lambda x: (x, x, x))
_OP = AttentionOp(
    name="depthwise_conv", extras=("weight", "bias"), parameters="bool residual", prepare=lambda residual: (residual,),
    check=_check, reference=reference.depthwise_conv, fused=f"{__name__}.fused", shapes=_shapes, pairs=_pairs,
    products=((1, 0), (2, 0)), cast=("weight", "bias"))  # fmt: skip


def _arguments(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: bool = False) -> tuple:
    return x, weight, bias, residual


_call = register(_OP, _MAP, _arguments)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: bool = False) -> Tensor:
    """Each channel convolved with a filter of its own, zeros around the map, which keeps its size.

    Args:
        x: [batch, height, width, channels]; float16, bfloat16, float32, or (off the fused kernels) float64; any
            strides, fastest with the channels contiguous.
        weight: [channels, 1, side, side] as ``torch.nn.Conv2d`` keeps it, the side odd; in float32 or x's dtype.
        bias: [channels], in float32 or x's dtype.
        residual: add x, as a position encoding does (arXiv 2102.10882).

    Returns [batch, height, width, channels], contiguous, in x's dtype. Sums are in float32. Differentiable in x, weight
    and bias; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.
    """
    if has_torch_function((x, weight, bias)):  # proxies of torch.fx and the like
        return handle_torch_function(depthwise_conv, (x, weight, bias), x, weight, bias, residual)
    return _call(*_arguments(x, weight, bias, residual))


__all__ = ["depthwise_conv"]
