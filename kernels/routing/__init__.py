"""Routed attention on 2-D maps: the tokens of a region attend to those of chosen regions. README.md has the maths."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_heads, logit_scale, remembered
from .._register import PACKED, PACKED_QK, SEPARATE, AttentionOp, lse_shape, register
from . import reference
from .geometry import Geometry, make_geometry


def _check(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, geometry: Geometry, scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    if q.shape != k.shape:
        raise ValueError(f"q must have k's shape {list(k.shape)}, got {list(q.shape)}")
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"v must have k's shape {list(k.shape)} up to the head dimension, got {list(v.shape)}")
    if k.shape[1] < 1 or k.shape[2] < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"k must have at least one row and column, got shape {list(k.shape)}")
    if not isinstance(routes, Tensor) or routes.dtype not in (torch.int32, torch.int64):
        found = routes.dtype if isinstance(routes, Tensor) else routes
        raise TypeError(f"routes must be an int32 or int64 tensor, got {found}")
    if routes.ndim != 3 or routes.shape[0] != k.shape[0] or routes.shape[1] != geometry.count or routes.shape[2] < 1:
        raise ValueError(f"routes must be [batch, regions, topk] = [{k.shape[0]}, {geometry.count}, at least 1], got "
                         f"shape {list(routes.shape)}")
    if routes.device != q.device:
        raise ValueError(f"routes must be on q's device {q.device}, got {routes.device}")


def _prepare(regions: list[int], scale: float) -> tuple[Geometry, float]:
    return Geometry(tuple(regions)), scale


def _shapes(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, geometry: Geometry, scale: float) -> tuple:
    return v.shape, lse_shape(q)


def _pairs(q: tuple, v: tuple, routes: tuple, geometry: Geometry, scale: float) -> int:
    """A cut region counts as a whole one: which regions are chosen is not known."""
    rows, columns = geometry.size(v[1], v[2])
    return v[0] * v[1] * v[2] * v[3] * routes[2] * rows * columns


_OP = AttentionOp(
    name="routed_attention", extras=("routes",), parameters="int[2] regions, float scale",
    prepare=_prepare, check=_check, reference=reference.routed_attention, fused=f"{__name__}.fused",
    shapes=_shapes, pairs=_pairs)

_geometry = remembered(make_geometry)


def _arguments(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: int | tuple[int, int],
               scale: float | None = None) -> tuple:
    return q, k, v, routes, *_geometry(regions), logit_scale(q, scale)


def _arguments_packed(qkv: Tensor, routes: Tensor, regions: int | tuple[int, int], scale: float | None = None) -> tuple:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [batch, height, width, 3, heads, head_dim], got shape {list(qkv.shape)}")
    return qkv, routes, *_geometry(regions), logit_scale(qkv, scale)


def _arguments_packed_qk(qk: Tensor, v: Tensor, routes: Tensor, regions: int | tuple[int, int],
                         scale: float | None = None) -> tuple:
    if qk.ndim != 6 or qk.shape[3] != 2:
        raise ValueError(f"qk must be [batch, height, width, 2, heads, head_dim], got shape {list(qk.shape)}")
    return qk, v, routes, *_geometry(regions), logit_scale(qk, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)
_packed_qk = register(_OP, PACKED_QK, _arguments_packed_qk)


def routed_attention(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: int | tuple[int, int],
                     scale: float | None = None) -> Tensor:
    """The tokens of a region attend to all tokens of the regions chosen for it: softmax(scale * q k^T) v.

    The map is cut into `regions` along each axis, of ceil(n / regions) positions; where that does not come out even the
    last regions hold less, or nothing. Which regions a region attends to is given, one choice for all heads: how it is
    made is the caller's business, and no gradient goes through it. Keys and values are read where they lie: nothing is
    gathered into memory.

    Args:
        q: [batch, height, width, heads, head_dim]; float16, bfloat16, float32, or (off the fused kernels) float64;
            head_dim 8 to 256; any strides, fastest with the last dimension contiguous.
        k: like q.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        routes: [batch, R, K], int32 or int64: for each of the R = rows * columns regions, in reading order, the numbers
            of those that its tokens attend to. A number that occurs twice counts twice; one outside 0..R - 1, which
            cannot be checked without waiting for the GPU, counts as the nearest. Tokens that see nothing, because all
            regions chosen for theirs lie outside the map, get zeros.
        regions: how many along each axis, an int or (rows, columns).
        scale: of the logits; head_dim ** -0.5 unless given.

    Returns [batch, height, width, heads, head_dim_v], contiguous, in q's dtype. Sums and softmax are in float32.
    Differentiable in q, k and v; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023.
    """
    if has_torch_function((q, k, v, routes)):          # proxies of torch.fx and the like
        return handle_torch_function(routed_attention, (q, k, v, routes), q, k, v, routes, regions, scale)
    return _separate(*_arguments(q, k, v, routes, regions, scale))


def routed_attention_packed(qkv: Tensor, routes: Tensor, regions: int | tuple[int, int],
                            scale: float | None = None) -> Tensor:
    """`routed_attention` of `qkv` [batch, height, width, 3, heads, head_dim], packed as one projection writes it.

    Reads q, k and v in place and returns one packed gradient: no copy forward or backward. All else as in
    `routed_attention`.
    """
    if has_torch_function((qkv, routes)):
        return handle_torch_function(routed_attention_packed, (qkv, routes), qkv, routes, regions, scale)
    return _packed(*_arguments_packed(qkv, routes, regions, scale))


def routed_attention_packed_qk(qk: Tensor, v: Tensor, routes: Tensor, regions: int | tuple[int, int],
                               scale: float | None = None) -> Tensor:
    """`routed_attention` of `qk` [batch, height, width, 2, heads, head_dim] and `v`, which has other readers too.

    Reads q and k in place and returns one packed gradient for both. All else as in `routed_attention`.
    """
    if has_torch_function((qk, v, routes)):
        return handle_torch_function(routed_attention_packed_qk, (qk, v, routes), qk, v, routes, regions, scale)
    return _packed_qk(*_arguments_packed_qk(qk, v, routes, regions, scale))


__all__ = ["routed_attention", "routed_attention_packed", "routed_attention_packed_qk"]
