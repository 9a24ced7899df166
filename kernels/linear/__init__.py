"""Injective linear attention (InLine) with its local residual: linear in the number of tokens. README.md has the
maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias, check_heads, logit_scale
from .._register import PACKED, SEPARATE, AttentionOp, register
from . import reference


def _check(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, grid: tuple[int, int], scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    if k.shape != q.shape:
        raise ValueError(f"k must have q's shape {list(q.shape)}, got {list(k.shape)}")
    if v.shape[:4] != q.shape[:4]:
        raise ValueError(f"v must have q's shape {list(q.shape)} up to the head dimension, got {list(v.shape)}")
    if q.shape[1] < 1 or q.shape[2] < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"q must have at least one row and column, got shape {list(q.shape)}")
    if grid[0] < 1 or grid[1] < 1 or grid[0] * grid[1] > q.shape[1] * q.shape[2]:
        raise ValueError("grid must be at least one row and column, and at most the "
                         f"{q.shape[1]} x {q.shape[2]} tokens of q, got {tuple(grid)}")
    if residual is not None:
        shape = (v.shape[0], v.shape[3], v.shape[4], 3, 3)
        check_bias(residual, q, "[batch, heads, head_dim_v, 3, 3]", shape, "residual")


def _prepare(grid: list[int], scale: float) -> tuple[tuple[int, int], float]:
    return tuple(grid), scale


def _shapes(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, grid: tuple[int, int], scale: float) -> tuple:
    batch, _, _, heads, d = q.shape
    return v.shape, (batch, heads, d * v.shape[4] + d + v.shape[4])      # sums of k^T v, of k and of v


def _pairs(q: tuple, v: tuple, residual: tuple | None, grid: tuple[int, int], scale: float) -> int:
    """Products for each channel of v: two with q's channels, and the residual's nine."""
    batch, height, width, heads, d = q
    taps = 0 if residual is None else 9 * grid[0] * grid[1]
    return batch * heads * (height * width * 2 * d + taps)


_OP = AttentionOp(
    name="linear_attention", extras=("residual",), parameters="SymInt[2] grid, float scale", prepare=_prepare,
    check=_check, reference=reference.linear_attention, fused=f"{__name__}.fused", shapes=_shapes, pairs=_pairs,
    products=((0, 1), (0, 2)))


def _grid(x: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is None:
        return x.shape[1], x.shape[2]
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"grid must be a pair of ints (rows, columns), got {grid!r}")
    return tuple(grid)


def _arguments(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None = None, grid: tuple[int, int] | None = None,
               scale: float | None = None) -> tuple:
    if q.ndim != 5:
        raise ValueError(f"q must be [batch, height, width, heads, head_dim], got shape {list(q.shape)}")
    return q, k, v, residual, _grid(q, grid), logit_scale(q, scale)


def _arguments_packed(qkv: Tensor, residual: Tensor | None = None, grid: tuple[int, int] | None = None,
                      scale: float | None = None) -> tuple:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [batch, height, width, 3, heads, head_dim], got shape {list(qkv.shape)}")
    return qkv, residual, _grid(qkv, grid), logit_scale(qkv, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None = None,
                     grid: tuple[int, int] | None = None, scale: float | None = None) -> Tensor:
    """Every token attends to all N tokens of its image, with weights that are linear in its query and sum to one.

    The weight of key j is scale / N * (q . k_j - mean of q . k) + 1 / N. Unlike the normalisation of plain linear
    attention, which divides by the sum, this one is injective: different queries never get the same weights, unless
    they differ only across the span of the centred keys. Cost and memory are linear in N.

    With `residual` a 3x3 convolution of v is added, with filters of its own for every image and channel and zeros
    around the map: InLine's local residual.

    Args:
        q: [batch, height, width, heads, head_dim]; float16, bfloat16, float32, or (off the fused kernels) float64;
            head_dim 8 to 256; any strides, fastest with the last dimension contiguous and rows end to end.
        k: the same shape and dtype.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        residual: [batch, heads, head_dim_v, 3, 3], in float32 or q's dtype. A filter is applied as convolutions in
            deep learning are: its upper left corner meets the upper left neighbour.
        grid: rows and columns of the map that the residual sees, if not height and width: it consists of the last
            rows * columns tokens in reading order. Tokens before (a class token) attend like all others and have no
            neighbours: [batch, 1, 1 + rows * columns, heads, head_dim] with grid=(rows, columns).
        scale: head_dim ** -0.5 unless given.

    Returns [batch, height, width, heads, head_dim_v], contiguous, in q's dtype. Sums over tokens are in float32.
    Differentiable in q, k, v and residual; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024; with the scale
    and the 1 / N of its official implementation.
    """
    if has_torch_function((q, k, v, residual)):          # proxies of torch.fx and the like
        return handle_torch_function(linear_attention, (q, k, v, residual), q, k, v, residual, grid, scale)
    return _separate(*_arguments(q, k, v, residual, grid, scale))


def linear_attention_packed(qkv: Tensor, residual: Tensor | None = None, grid: tuple[int, int] | None = None,
                            scale: float | None = None) -> Tensor:
    """`linear_attention` of `qkv` [batch, height, width, 3, heads, head_dim], packed as one projection writes it.

    Reads q, k and v in place and returns one packed gradient: no copy forward or backward. All else as in
    `linear_attention`.
    """
    if has_torch_function((qkv, residual)):
        return handle_torch_function(linear_attention_packed, (qkv, residual), qkv, residual, grid, scale)
    return _packed(*_arguments_packed(qkv, residual, grid, scale))


__all__ = ["linear_attention", "linear_attention_packed"]
