"""Varied window attention on 2-D maps: keys and values sampled at places of each head's and window's own. README.md has
the maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias, check_heads, logit_scale, remembered
from .._register import PACKED, SEPARATE, AttentionOp, lse_shape, register
from ..window.geometry import Geometry, make_geometry
from . import reference


def _check(q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry,
           scale: float) -> None:  # fmt: skip
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    batch, height, width, heads, _ = k.shape
    if q.shape != k.shape:
        raise ValueError(f"q must have k's shape {list(k.shape)}, got {list(q.shape)}")
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"v must have k's shape {list(k.shape)} up to the head dimension, got {list(v.shape)}")
    if height < 1 or width < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"k must have at least one row and column, got shape {list(k.shape)}")
    shape = (batch, *geometry.map_windows(height, width), heads, 4)
    if sampling is None:
        raise TypeError(f"sampling must be a tensor {list(shape)}, got None")
    words = f"[batch, windows_h, windows_w, heads, 4] for windows of {geometry.window} on a map of {height} x {width}"
    check_bias(sampling, q, words, shape, "sampling")
    if bias is not None:
        shape = (heads, geometry.positions, geometry.positions)
        words = ("a table [heads, 2 * window_h - 1, 2 * window_w - 1] or "
                 "[heads, window_h * window_w, window_h * window_w]")
        if bias.ndim == 3 and geometry.is_table(bias.shape):
            shape, words = (heads, *bias.shape[1:]), "[heads, 2 * window_h - 1, 2 * window_w - 1]"
        check_bias(bias, q, words, shape)


def _prepare(window_size: list[int], scale: float) -> tuple[Geometry, float]:
    return Geometry(tuple(window_size)), scale


def _shapes(q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry,
            scale: float) -> tuple:  # fmt: skip
    return v.shape, lse_shape(q)


def _pairs(q: tuple, v: tuple, sampling: tuple, bias: tuple | None, geometry: Geometry, scale: float) -> int:
    return q[0] * q[1] * q[2] * q[3] * geometry.positions


_OP = AttentionOp(
    name="varied_window_attention", extras=("sampling", "bias"), parameters="int[2] window_size, float scale",
    prepare=_prepare, check=_check, reference=reference.varied_window_attention, fused=f"{__name__}.fused",
    shapes=_shapes, pairs=_pairs)

_geometry = remembered(make_geometry)


def _arguments(
        q: Tensor, k: Tensor, v: Tensor, window_size: int | tuple[int, int], sampling: Tensor,
        bias: Tensor | None = None, scale: float | None = None) -> tuple:
    return q, k, v, sampling, bias, _geometry(window_size).window, logit_scale(q, scale)


def _arguments_packed(
        qkv: Tensor, window_size: int | tuple[int, int], sampling: Tensor, bias: Tensor | None = None,
        scale: float | None = None) -> tuple:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [batch, height, width, 3, heads, head_dim], got shape {list(qkv.shape)}")
    return qkv, sampling, bias, _geometry(window_size).window, logit_scale(qkv, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)


def varied_window_attention(
        q: Tensor, k: Tensor, v: Tensor, window_size: int | tuple[int, int], sampling: Tensor,
        bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Queries of a window attend to keys that are sampled where their head and window say.

    The map is cut into windows from its first position on. A window's keys and values are those at its own positions,
    moved by a displacement and stretched about the window's centre, each axis and each head by its own numbers, and
    interpolated bilinearly: out = softmax(scale * q k'^T + bias) v'. Outside the map keys and values are zeros: they
    are not masked, and take softmax weight. So is what a last window that is not whole lacks.

    Args:
        q: [batch, height, width, heads, head_dim]; float16, bfloat16, float32, or (off the fused kernels) float64;
            head_dim 8 to 256; any strides, fastest with the last dimension contiguous.
        k: the same shape and dtype.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        window_size: positions of a window, an int or (rows, columns).
        sampling: [batch, ceil(height / window_h), ceil(width / window_w), heads, 4], in float32 or q's dtype: for each
            window and head the displacement of the centre along rows and along columns, in positions, and by how much
            more than 1 rows and columns are stretched. Zeros give window attention. Places are computed in float32.
        bias: [heads, window_h * window_w, window_h * window_w], added to the logits of (query, key), keys by their
            numbers in the window, in reading order, wherever they lie. Or a table of relative positions
            [heads, 2 * window_h - 1, 2 * window_w - 1], its entries counting query minus key from 1 - window on, as
            Swin's do. In float32 or q's dtype. Not scaled.
        scale: of the logits; head_dim ** -0.5 unless given.

    Returns [batch, height, width, heads, head_dim_v], contiguous, in q's dtype. Sums and softmax are in float32.
    Differentiable in q, k, v, sampling (at a whole position from its greater side) and bias; twice and more through the
    reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Zhang et al., "VSA: Learning Varied-Size Window Attention in Vision Transformers", ECCV 2022.
    """
    if has_torch_function((q, k, v, sampling, bias)):          # proxies of torch.fx and the like
        return handle_torch_function(varied_window_attention, (q, k, v, sampling, bias), q, k, v, window_size, sampling,
                                     bias, scale)
    return _separate(*_arguments(q, k, v, window_size, sampling, bias, scale))


def varied_window_attention_packed(
        qkv: Tensor, window_size: int | tuple[int, int], sampling: Tensor, bias: Tensor | None = None,
        scale: float | None = None) -> Tensor:
    """`varied_window_attention` of `qkv` [batch, height, width, 3, heads, head_dim], packed as a projection writes it.

    Reads q, k and v in place and returns one packed gradient. All else as in `varied_window_attention`.
    """
    if has_torch_function((qkv, sampling, bias)):
        return handle_torch_function(varied_window_attention_packed, (qkv, sampling, bias), qkv, window_size, sampling,
                                     bias, scale)
    return _packed(*_arguments_packed(qkv, window_size, sampling, bias, scale))


__all__ = ["varied_window_attention", "varied_window_attention_packed"]
