"""Window attention on 2-D maps: blocks, shifted blocks, grids, and one query window shared by all. README.md has the
maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias, check_heads, logit_scale, remembered
from .._register import PACKED, PACKED_KV, SEPARATE, AttentionOp, lse_shape, register
from . import reference
from .geometry import Geometry, make_geometry


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    batch, height, width, heads, dim = k.shape
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"v must have k's shape {list(k.shape)} up to the head dimension, got {list(v.shape)}")
    if height < 1 or width < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"k must have at least one row and column, got shape {list(k.shape)}")
    if q.shape != k.shape:
        shared = [batch, *geometry.window, heads, dim]
        if list(q.shape) != shared:
            raise ValueError(f"q must have k's shape {list(k.shape)}, or be one window {shared} shared by all windows, "
                             f"got {list(q.shape)}")
        if geometry.shift != (0, 0):
            raise ValueError(f"shift must be 0 where q is one window shared by all windows, got {geometry.shift}")
    if bias is not None:
        shape = (heads, geometry.positions, geometry.positions)
        words = ("a table [heads, 2 * window_h - 1, 2 * window_w - 1] or "
                 "[heads, window_h * window_w, window_h * window_w]")
        if bias.ndim == 3 and geometry.is_table(bias.shape):
            shape, words = (heads, *bias.shape[1:]), "[heads, 2 * window_h - 1, 2 * window_w - 1]"
        check_bias(bias, q, words, shape)


def _prepare(window_size: list[int], shift: list[int], grid: bool, scale: float) -> tuple[Geometry, float]:
    return Geometry(tuple(window_size), tuple(shift), grid), scale


def _shapes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> tuple:
    return v.shape, lse_shape(k)


def _pairs(q: tuple, v: tuple, bias: tuple | None, geometry: Geometry, scale: float) -> int:
    return v[0] * v[3] * geometry.pairs(v[1], v[2])


_OP = AttentionOp(
    name="window_attention", extras=("bias",),
    parameters="int[2] window_size, int[2] shift, bool grid, float scale",
    prepare=_prepare, check=_check, reference=reference.window_attention, fused=f"{__name__}.fused",
    shapes=_shapes, pairs=_pairs)

_geometry = remembered(make_geometry)


def _arguments(
        q: Tensor, k: Tensor, v: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0,
        partition: str = "block", bias: Tensor | None = None, scale: float | None = None) -> tuple:
    return q, k, v, bias, *_geometry(window_size, shift, partition), logit_scale(q, scale)


def _arguments_packed(
        qkv: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0, partition: str = "block",
        bias: Tensor | None = None, scale: float | None = None) -> tuple:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [batch, height, width, 3, heads, head_dim], got shape {list(qkv.shape)}")
    return qkv, bias, *_geometry(window_size, shift, partition), logit_scale(qkv, scale)


def _arguments_packed_kv(
        q: Tensor, kv: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0,
        partition: str = "block", bias: Tensor | None = None, scale: float | None = None) -> tuple:
    if kv.ndim != 6 or kv.shape[3] != 2:
        raise ValueError(f"kv must be [batch, height, width, 2, heads, head_dim], got shape {list(kv.shape)}")
    return q, kv, bias, *_geometry(window_size, shift, partition), logit_scale(q, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)
_packed_kv = register(_OP, PACKED_KV, _arguments_packed_kv)


def window_attention(
        q: Tensor, k: Tensor, v: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0,
        partition: str = "block", bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Each position attends to the positions of its window: softmax(scale * q k^T + bias) v within every window.

    Windows are blocks of neighbours, of which the first starts `shift` positions into the map and, with a shift, one
    more before it: what Swin gets by rolling the map and masking. Or they are grids: with `partition="grid"` a window's
    positions lie map / window apart, as in MaxViT. A map need not be a multiple of the window: windows then reach
    beyond it, and what lies outside is masked. (Swin's own padding, which is attended to, is for its layer to add.)

    Args:
        q: [batch, height, width, heads, head_dim]; float16, bfloat16, float32, or (off the fused kernels) float64;
            head_dim 8 to 256; any strides, fastest with the last dimension contiguous. Or one window of queries
            [batch, window_h, window_w, heads, head_dim] shared by all windows of an image, as in GC ViT; without shift.
        k: [batch, height, width, heads, head_dim], same dtype.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        window_size: positions of a window; this and the next are ints or (rows, columns).
        shift: where the first whole block starts, 0 to window_size - 1; 0 with a grid.
        partition: "block" or "grid".
        bias: [heads, window_h * window_w, window_h * window_w], added to the logits of (query, key), positions of a
            window in reading order. Or a table of relative positions [heads, 2 * window_h - 1, 2 * window_w - 1], its
            entries counting query minus key from 1 - window on, as Swin's do. In float32 or q's dtype. Not scaled.
        scale: of the logits; head_dim ** -0.5 unless given.

    Returns [batch, height, width, heads, head_dim_v], contiguous, in q's dtype. Sums and softmax are in float32.
    Differentiable in q, k, v and bias; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Liu et al., "Swin Transformer", ICCV 2021; Tu et al., "MaxViT", ECCV 2022 (grids); Hatamizadeh et al.,
    "Global Context Vision Transformers", ICML 2023 (shared queries).
    """
    if has_torch_function((q, k, v, bias)):          # proxies of torch.fx and the like
        return handle_torch_function(window_attention, (q, k, v, bias), q, k, v, window_size, shift, partition, bias,
                                     scale)
    return _separate(*_arguments(q, k, v, window_size, shift, partition, bias, scale))


def window_attention_packed(
        qkv: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0, partition: str = "block",
        bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`window_attention` of `qkv` [batch, height, width, 3, heads, head_dim], packed as one projection writes it.

    Reads q, k and v in place and returns one packed gradient: no copy forward or backward. All else as in
    `window_attention`.
    """
    if has_torch_function((qkv, bias)):
        return handle_torch_function(window_attention_packed, (qkv, bias), qkv, window_size, shift, partition, bias,
                                     scale)
    return _packed(*_arguments_packed(qkv, window_size, shift, partition, bias, scale))


def window_attention_packed_kv(
        q: Tensor, kv: Tensor, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0,
        partition: str = "block", bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`window_attention` of `q` and `kv` [batch, height, width, 2, heads, head_dim], for queries of another source.

    Reads k and v in place and returns one packed gradient for both. All else as in `window_attention`.
    """
    if has_torch_function((q, kv, bias)):
        return handle_torch_function(window_attention_packed_kv, (q, kv, bias), q, kv, window_size, shift, partition,
                                     bias, scale)
    return _packed_kv(*_arguments_packed_kv(q, kv, window_size, shift, partition, bias, scale))


__all__ = ["window_attention", "window_attention_packed", "window_attention_packed_kv"]
