"""Halo attention on 2-D maps: blocks that see a halo around them, with relative logits. README.md has the maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias, check_heads, logit_scale, remembered
from .._register import HEADS_OF_KV, SEPARATE, AttentionOp, lse_shape, register
from . import reference
from .geometry import Geometry, make_geometry


def _check(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Geometry, scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    batch, height, width, heads, dim = k.shape
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"v must have k's shape {list(k.shape)} up to the head dimension, got {list(v.shape)}")
    if height < 1 or width < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"k must have at least one row and column, got shape {list(k.shape)}")
    expected = [batch, *geometry.query_map(height, width), heads, dim]
    if list(q.shape) != expected:
        raise ValueError(f"q must have k's shape {list(k.shape)}, rows and columns divided by the stride "
                         f"{geometry.stride} and rounded up: {expected}, got {list(q.shape)}")
    for name, axis, table, window in zip(("rel_h", "rel_w"), "hw", (rel_h, rel_w), geometry.window):
        if table is None:
            raise TypeError(f"{name} must be a tensor [{2 * window - 1}, {dim}], got None")
        words = f"[2 * window_{axis} - 1, head_dim] for window_{axis} = block + 2 * halo = {window},"
        check_bias(table, q, words, (2 * window - 1, dim), name)


def _prepare(block_size: list[int], halo_size: list[int], stride: list[int], scale: float) -> tuple[Geometry, float]:
    return Geometry(tuple(block_size), tuple(halo_size), tuple(stride)), scale


def _shapes(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Geometry, scale: float) -> tuple:
    return (*q.shape[:4], v.shape[4]), lse_shape(q)


def _pairs(q: tuple, v: tuple, rel_h: tuple, rel_w: tuple, geometry: Geometry, scale: float) -> int:
    return q[0] * q[1] * q[2] * q[3] * geometry.window[0] * geometry.window[1]


_OP = AttentionOp(
    name="halo_attention", extras=("rel_h", "rel_w"),
    parameters="int[2] block_size, int[2] halo_size, int[2] stride, float scale",
    prepare=_prepare, check=_check, reference=reference.halo_attention, fused=f"{__name__}.fused",
    shapes=_shapes, pairs=_pairs)

_geometry = remembered(make_geometry)


def _arguments(
        q: Tensor, k: Tensor, v: Tensor, block_size: int | tuple[int, int], halo_size: int | tuple[int, int],
        rel_h: Tensor, rel_w: Tensor, stride: int | tuple[int, int] = 1, scale: float | None = None) -> tuple:
    return q, k, v, rel_h, rel_w, *_geometry(block_size, halo_size, stride), logit_scale(q, scale)


def _arguments_packed_kv(
        q: Tensor, kv: Tensor, block_size: int | tuple[int, int], halo_size: int | tuple[int, int],
        rel_h: Tensor, rel_w: Tensor, stride: int | tuple[int, int] = 1, scale: float | None = None) -> tuple:
    if kv.ndim != 5 or kv.shape[4] <= q.shape[-1]:
        raise ValueError("kv must be [batch, height, width, heads, head_dim + head_dim_v] with q's head_dim "
                         f"{q.shape[-1]}, got shape {list(kv.shape)}")
    return q, kv, rel_h, rel_w, *_geometry(block_size, halo_size, stride), logit_scale(q, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed_kv = register(_OP, HEADS_OF_KV, _arguments_packed_kv)


def halo_attention(
        q: Tensor, k: Tensor, v: Tensor, block_size: int | tuple[int, int], halo_size: int | tuple[int, int],
        rel_h: Tensor, rel_w: Tensor, stride: int | tuple[int, int] = 1, scale: float | None = None) -> Tensor:
    """Blocks of queries attend to their block and a halo around it, with logits that depend on query and displacement.

    The map is cut into blocks; every query of a block sees the block and `halo_size` positions on each of its sides,
    window = block + 2 * halo positions an axis: out = softmax(scale * q k^T + q rel_h^T + q rel_w^T) v, each table read
    at the row of key minus query + window - 1. Positions outside the map are keys and values of zeros: they are not
    masked, and take softmax weight by their relative logits. So is what a last block that is not whole lacks.

    Args:
        q: [batch, ceil(height / stride), ceil(width / stride), heads, head_dim]; float16, bfloat16, float32, or (off
            the fused kernels) float64; head_dim 8 to 256; any strides, fastest with the last dimension contiguous.
        k: [batch, height, width, heads, head_dim], same dtype.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        block_size: positions of a block; this, halo_size and stride are ints or (rows, columns).
        halo_size: positions seen on each side of a block, at least 0.
        rel_h: [2 * window_h - 1, head_dim], shared by all heads, in float32 or q's dtype: relative rows, counted from
            the halo's corner for keys and from the block's corner for queries, so that the first
            window - block / stride of them are never read. Multiplied with q as it is, without the scale.
        rel_w: [2 * window_w - 1, head_dim], the same for columns.
        stride: distance of the queries, a divisor of block_size: a block has (block_size / stride) queries an axis, and
            displacements count queries and keys by their numbers, as in the published models.
        scale: of q k^T; head_dim ** -0.5 unless given.

    Returns [*q's shape up to the head dimension, head_dim_v], contiguous, in q's dtype. Sums and softmax are in
    float32. Differentiable in q, k, v, rel_h and rel_w; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", CVPR 2021.
    """
    if has_torch_function((q, k, v, rel_h, rel_w)):          # proxies of torch.fx and the like
        return handle_torch_function(halo_attention, (q, k, v, rel_h, rel_w), q, k, v, block_size, halo_size, rel_h,
                                     rel_w, stride, scale)
    return _separate(*_arguments(q, k, v, block_size, halo_size, rel_h, rel_w, stride, scale))


def halo_attention_packed_kv(
        q: Tensor, kv: Tensor, block_size: int | tuple[int, int], halo_size: int | tuple[int, int],
        rel_h: Tensor, rel_w: Tensor, stride: int | tuple[int, int] = 1, scale: float | None = None) -> Tensor:
    """`halo_attention` of `q` and `kv` [batch, height, width, heads, head_dim + head_dim_v], head-major.

    Each head's k, as wide as q's, and then its v, as HaloNet's projection writes them. Reads both in place and returns
    one packed gradient. All else as in `halo_attention`.
    """
    if has_torch_function((q, kv, rel_h, rel_w)):
        return handle_torch_function(halo_attention_packed_kv, (q, kv, rel_h, rel_w), q, kv, block_size, halo_size,
                                     rel_h, rel_w, stride, scale)
    return _packed_kv(*_arguments_packed_kv(q, kv, block_size, halo_size, rel_h, rel_w, stride, scale))


__all__ = ["halo_attention", "halo_attention_packed_kv"]
