"""Channel attention: channels of a group attend to each other over all tokens of a map. README.md has the maths."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._arguments import check_heads, logit_scale
from .._register import PACKED, SEPARATE, AttentionOp, register
from . import reference


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Raise ValueError or TypeError, naming the argument, what it was and what is allowed."""
    check_heads(q, k, v)
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} must have q's shape {list(q.shape)}, got {list(x.shape)}")
    if q.shape[1] < 1 or q.shape[2] < 1:      # min() would tie a graph to which is smaller
        raise ValueError(f"q must have at least one row and column, got shape {list(q.shape)}")


def _prepare(scale: float) -> tuple[float]:
    return (scale,)


def _shapes(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple:
    batch, _, _, groups, dim = q.shape
    return q.shape, (batch, groups, dim, dim)      # the channels' weights stand where other ops keep their lse


def _pairs(q: tuple, v: tuple, scale: float) -> int:
    batch, height, width, groups, dim = q
    return batch * height * width * groups * dim   # (token, channel); each meets the channels of its group


_OP = AttentionOp(
    name="channel_attention", extras=(), parameters="float scale",
    prepare=_prepare, check=_check, reference=reference.channel_attention, fused=f"{__name__}.fused",
    shapes=_shapes, pairs=_pairs, products=((1, 1), (2, 2)))   # the weights are kept, not computed again


def _grouped(name: str, x: Tensor, groups: int, packed: int | None = None) -> Tensor:
    """[B, H, W, C] as [B, H, W, groups, C / groups]; of `packed` tensors side by side [B, H, W, packed, groups, D]."""
    parts = packed or 1
    width = "channels" if packed is None else f"{packed} * channels"
    if x.ndim != 4:
        raise ValueError(f"{name} must be [batch, height, width, {width}], got shape {list(x.shape)}")
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}")
    if x.shape[3] % (parts * groups):
        raise ValueError(f"groups must divide the channels of {name}, got {groups} for shape {list(x.shape)}"
                         + ("" if packed is None else f" of {packed} tensors side by side"))
    dim = x.shape[3] // (parts * groups)
    return x.unflatten(3, (groups, dim) if packed is None else (packed, groups, dim))


def _arguments(q: Tensor, k: Tensor, v: Tensor, groups: int, scale: float | None = None) -> tuple:
    q, k, v = (_grouped(name, x, groups) for name, x in (("q", q), ("k", k), ("v", v)))
    return q, k, v, logit_scale(q, scale)


def _arguments_packed(qkv: Tensor, groups: int, scale: float | None = None) -> tuple:
    qkv = _grouped("qkv", qkv, groups, 3)
    return qkv, logit_scale(qkv, scale)


_separate = register(_OP, SEPARATE, _arguments)
_packed = register(_OP, PACKED, _arguments_packed)


def channel_attention(q: Tensor, k: Tensor, v: Tensor, groups: int, scale: float | None = None) -> Tensor:
    """Within each group of channels, q of every token is mixed by softmax(scale * k^T v), summed over all tokens.

    Channels attend to channels: the logit of an output channel i and an input channel j of its group is the sum of
    k[i] v[j] over the map, and output i is the sum of q[j] over j, weighted by the softmax over j. (The names are
    those of DaViT's projection: k and v make the weights, and q is what they mix.) Linear in the tokens.

    Args:
        q: [batch, height, width, channels]; float16, bfloat16, float32, or (off the fused kernels) float64; any
            strides, fastest with the last dimension contiguous and rows that follow each other.
        k, v: like q.
        groups: into how many groups of neighbouring channels they are cut; of 8 to 256 channels each.
        scale: of the logits; (channels / groups) ** -0.5 unless given.

    Returns [batch, height, width, channels], contiguous, in q's dtype. Sums and softmax are in float32. Differentiable
    in q, k and v; twice and more through the reference. Deterministic.

    Raises ValueError or TypeError for arguments outside of this.

    Source: Ding et al., "DaViT: Dual Attention Vision Transformers", ECCV 2022.
    """
    if has_torch_function((q, k, v)):          # proxies of torch.fx and the like
        return handle_torch_function(channel_attention, (q, k, v), q, k, v, groups, scale)
    return _separate(*_arguments(q, k, v, groups, scale)).flatten(3)


def channel_attention_packed(qkv: Tensor, groups: int, scale: float | None = None) -> Tensor:
    """`channel_attention` of `qkv` [batch, height, width, 3 * channels], q, k, v side by side as one projection writes.

    Reads q, k and v in place and returns one packed gradient: no copy forward or backward. All else as in
    `channel_attention`.
    """
    if has_torch_function((qkv,)):
        return handle_torch_function(channel_attention_packed, (qkv,), qkv, groups, scale)
    return _packed(*_arguments_packed(qkv, groups, scale)).flatten(3)


__all__ = ["channel_attention", "channel_attention_packed"]
