"""Neighborhood attention on 2-D maps, dilated and strided: NA, DiNA and GNA. README.md has the maths."""
from collections.abc import Callable

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_bias, check_heads, logit_scale, remembered
from .._dispatch import fused_refuses
from .._register import PACKED, SEPARATE, AttentionOp, Form, lse_shape, register
from . import natten, reference
from .geometry import Geometry, make_geometry


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
           geometry: Geometry, scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    if k.shape != q.shape:
        raise ValueError(f"k must have q's shape {list(q.shape)}, got {list(k.shape)}")
    if v.shape[:4] != q.shape[:4]:
        raise ValueError(f"v must have q's shape {list(q.shape)} up to the head dimension, got {list(v.shape)}")
    geometry.check_map(q.shape[1], q.shape[2])
    if bias is not None:
        (kernel_h, kernel_w), heads = geometry.kernel, q.shape[3]
        check_bias(bias, q, "[heads, 2 * kernel_h - 1, 2 * kernel_w - 1]", (heads, 2 * kernel_h - 1, 2 * kernel_w - 1))
    if extra_k is not None or extra_v is not None:
        _check_extra(q, v, extra_k, extra_v)


def _check_extra(q: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None) -> None:
    if extra_k is None or extra_v is None:
        missing, given = ("extra_k", "extra_v") if extra_k is None else ("extra_v", "extra_k")
        raise ValueError(f"extra_k and extra_v must be given together, got {given} and None for {missing}")
    for name, x, owner in (("extra_k", extra_k, q), ("extra_v", extra_v, v)):
        batch, heads, d = owner.shape[0], owner.shape[3], owner.shape[4]
        if x.ndim != 4 or x.shape[1] < 1 or (x.shape[0], *x.shape[2:]) != (batch, heads, d):
            raise ValueError(f"{name} must be [batch, tokens, heads, head_dim] = [{batch}, 1 or more, {heads}, {d}], "
                             f"got shape {list(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    if extra_k.shape[1] != extra_v.shape[1]:
        raise ValueError(f"extra_v must hold as many tokens as extra_k, {extra_k.shape[1]}, got {extra_v.shape[1]}")


def _prepare(kernel_size: list[int], dilation: list[int], stride: list[int], is_causal: list[bool],
             scale: float) -> tuple[Geometry, float]:
    return Geometry(tuple(kernel_size), tuple(dilation), tuple(stride), tuple(is_causal)), scale


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None,
               geometry: Geometry, scale: float) -> Tensor:
    return reference.neighborhood_attention(q, k, v, bias, geometry, scale, extra_k, extra_v)


def _shapes(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple:
    return (*q.shape[:4], v.shape[4]), lse_shape(q)


def _pairs(q: tuple, v: tuple, bias: tuple | None, extra_k: tuple | None, extra_v: tuple | None, geometry: Geometry,
           scale: float) -> int:
    tokens = 0 if extra_k is None else extra_k[1]
    return q[0] * q[3] * (geometry.pairs(q[1], q[2]) + q[1] * q[2] * tokens)


_OP = AttentionOp(
    name="neighborhood_attention", extras=("bias", "extra_k", "extra_v"), cast=("extra_k", "extra_v"),
    parameters="int[2] kernel_size, int[2] dilation, int[2] stride, bool[2] is_causal, float scale",
    prepare=_prepare, check=_check, reference=_reference, fused=f"{__name__}.extra",
    shapes=_shapes, pairs=_pairs, guest=f"{__name__}.natten")


_geometry = remembered(make_geometry)


def _arguments(q: Tensor, k: Tensor, v: Tensor, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1,
               stride: int | tuple[int, int] = 1, bias: Tensor | None = None, scale: float | None = None,
               is_causal: bool | tuple[bool, bool] = False, extra_k: Tensor | None = None,
               extra_v: Tensor | None = None, backend: str | None = None) -> tuple:
    geometry = _geometry(kernel_size, dilation, stride, is_causal)
    return q, k, v, bias, extra_k, extra_v, *geometry, logit_scale(q, scale)


def _arguments_packed(
        qkv: Tensor, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1, bias: Tensor | None = None, scale: float | None = None,
        is_causal: bool | tuple[bool, bool] = False, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
        backend: str | None = None) -> tuple:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [batch, height, width, 3, heads, head_dim], got shape {list(qkv.shape)}")
    geometry = _geometry(kernel_size, dilation, stride, is_causal)
    return qkv, bias, extra_k, extra_v, *geometry, logit_scale(qkv, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)


def _call(form: Form, usual: Callable[..., Tensor], backend: str | None, arguments: tuple) -> Tensor:
    """By the implementation that is asked for, or else the first that can."""
    n = len(form.tensors)
    if not natten.wanted(backend, arguments[n + 3]):
        return usual(*arguments)
    bias, extra_k, extra_v, *parameters = arguments[n:]
    geometry, scale = _prepare(*parameters)
    q, k, v = form.split(*arguments[:n])
    found = natten.chosen(backend, q, k, v, bias, extra_k, extra_v, geometry)
    if found is None:
        return usual(*arguments)
    _check(q, k, v, bias, extra_k, extra_v, geometry, scale)
    if found == "natten":
        return natten.attend(q, k, v, geometry, scale, extra_k, extra_v)
    if found == "reference":
        return _reference(q, k, v, bias, extra_k, extra_v, geometry, scale)
    reason = fused_refuses(_OP, q, k, v, bias, extra_k, extra_v, geometry, scale)
    if reason is not None and backend is not None:
        raise ValueError(f"backend 'fused' cannot take this call: {reason}")
    return usual(*arguments)


def neighborhood_attention(
        q: Tensor, k: Tensor, v: Tensor, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1, bias: Tensor | None = None, scale: float | None = None,
        is_causal: bool | tuple[bool, bool] = False, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
        backend: str | None = None) -> Tensor:
    """Each position attends to a window of positions around it: softmax(scale * q k^T + bias) v over that window.

    A position's window holds `kernel_size` positions an axis, `dilation` apart, and is centred on it; at the map's
    borders it is shifted inwards, so every position sees kernel_h * kernel_w keys. With a stride s, s neighbours share
    one window, centred on the middle one: stride 1 is neighborhood attention, stride = kernel_size blocked attention.

    Args:
        q, k: [batch, height, width, heads, head_dim]; float16, bfloat16, float32, or (off the fused kernels) float64;
            head_dim 8 to 256; any strides, fastest with the last dimension contiguous.
        v: [batch, height, width, heads, head_dim_v], same dtype; head_dim_v may differ from head_dim.
        kernel_size: positions of the window, odd or even; this and the next two are ints or (rows, columns).
        dilation: distance of a window's positions; kernel_size * dilation may not exceed the map.
        stride: how many neighbours share a window, 1 to kernel_size.
        bias: [heads, 2 * kernel_h - 1, 2 * kernel_w - 1], added to the logits at (key - query) / dilation +
            kernel_size - 1 an axis; in float32 or q's dtype. Not scaled.
        scale: of the logits; head_dim ** -0.5 unless given.
        is_causal: whether positions see nothing ahead of them; a bool or (rows, columns). Along a causal axis the
            window ends at the position itself, with a stride at the last of its neighbours but without those that lie
            ahead, and the map's border cuts it short. The bias keeps its shape.
        extra_k, extra_v: [batch, tokens, heads, head_dim] and [batch, tokens, heads, head_dim_v], q's dtype: tokens
            that every position attends to besides its window, in the same softmax, without bias; both or neither.
        backend: "fused", "reference" or "natten", an installed NATTEN's kernels, whose gradients are not always
            deterministic; None takes the first that can, NATTEN only where it was measured faster. The environment
            variable VISIONATTN_NEIGHBORHOOD_BACKEND, read at import, asks for one wherever it can be had.

    Returns [batch, height, width, heads, head_dim_v], contiguous, in q's dtype. Sums and softmax are in float32.
    Differentiable in all tensors; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this, such as a map smaller than kernel_size * dilation, and
    for a `backend` that cannot take the call.

    Source: Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; Hassani and Shi, "Dilated Neighborhood
    Attention Transformer", 2022; Hassani et al., "Generalized Neighborhood Attention", 2025.
    """
    tensors = q, k, v, bias, extra_k, extra_v
    if has_torch_function(tensors):          # proxies of torch.fx and the like
        return handle_torch_function(neighborhood_attention, tensors, q, k, v, kernel_size, dilation, stride, bias,
                                     scale, is_causal, extra_k, extra_v, backend)
    return _call(SEPARATE, _separate, backend,
                 _arguments(q, k, v, kernel_size, dilation, stride, bias, scale, is_causal, extra_k, extra_v))


def neighborhood_attention_packed(
        qkv: Tensor, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1, bias: Tensor | None = None, scale: float | None = None,
        is_causal: bool | tuple[bool, bool] = False, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
        backend: str | None = None) -> Tensor:
    """`neighborhood_attention` of `qkv` [batch, height, width, 3, heads, head_dim], packed as one projection writes it.

    Reads q, k and v in place and returns one packed gradient: no copy forward or backward. All else as in
    `neighborhood_attention`.
    """
    tensors = qkv, bias, extra_k, extra_v
    if has_torch_function(tensors):
        return handle_torch_function(neighborhood_attention_packed, tensors, qkv, kernel_size, dilation, stride, bias,
                                     scale, is_causal, extra_k, extra_v, backend)
    return _call(PACKED, _packed, backend,
                 _arguments_packed(qkv, kernel_size, dilation, stride, bias, scale, is_causal, extra_k, extra_v))


__all__ = ["neighborhood_attention", "neighborhood_attention_packed"]
