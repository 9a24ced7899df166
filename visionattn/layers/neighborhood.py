"""Neighborhood attention as a layer: projections, relative bias, and what happens on maps smaller than the window."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module, to_2tuple, trunc_normal_
from torch import nn

from visionattn.kernels import neighborhood_attention_packed
from visionattn.layers.attn_drop import warn_attn_drop
from visionattn.layers.padding import crop, pad_to_least


def clamp_neighborhood(size: int, kernel: int, dilation: int, stride: int) -> tuple[int, int, int]:
    """Fits one axis of a neighborhood to a map of ``size`` positions.

    The kernel is cut to the map, then the dilation to ``size // kernel`` (the largest with which every dilation group
    still holds a whole window), and the stride to the kernel. On large enough maps nothing changes.
    """
    # Compared, not min(): a symbolic size stays symbolic where nothing is cut. Where something is, the window is a
    # constant of a compiled or exported graph, and int() ties the graph to this size; torch says so where it must not.
    if size < kernel:
        kernel = int(size)
    if size < kernel * dilation:
        dilation = int(size // kernel)
    return kernel, dilation, min(stride, kernel)


@register_notrace_module  # clamping and padding branch on sizes
class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention over a map, dilated and strided (NAT, arXiv 2204.07143; DiNAT, arXiv
    2209.15001; generalized neighborhood attention, arXiv 2504.16922).

    Every query attends to ``kernel_size`` positions of its own dilation group, in a window that is shifted inwards at
    the borders, so that each query sees equally many keys. With stride s the s neighbouring queries of a group share
    the window of their leader.

    The map may have any size: kernel, dilation and stride are fitted to it per axis (:func:`clamp_neighborhood`), and
    a cut kernel uses the centre of the relative table. With ``pad_small`` the neighborhood stays, and the map is filled
    up instead, to ``kernel_size * dilation`` per axis: zeros at the bottom and right before the projection, which take
    part in the attention and are cut off afterwards. This is how NAT's and DiNAT's published weights were run.

    Args:
        dim: channels of the map, a multiple of ``num_heads``.
        num_heads: attention heads.
        kernel_size, dilation, stride: an int or an (h, w) pair, positive; stride at most the kernel.
        qkv_bias: bias of the projection to queries, keys and values.
        rel_bias: whether there is a learned table of relative positions ``rpb``
            [num_heads, 2 * kernel_h - 1, 2 * kernel_w - 1], indexed by key minus query in units of the dilation.
        attn_drop: dropout of attention probabilities in training. No fused kernel does this: with a rate above 0,
            training gathers every window in plain PyTorch, and construction warns once.
        proj_drop: dropout after the output projection.
        pad_small: fill up small maps instead of fitting the neighborhood to them.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: at construction, where ``dim`` is no multiple of ``num_heads`` or a size is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        qkv_bias: bool = True,
        rel_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pad_small: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.kernel_size = to_2tuple(kernel_size)
        self.dilation = to_2tuple(dilation)
        self.stride = to_2tuple(stride)
        self.pad_small = pad_small
        for name in ("kernel_size", "dilation", "stride"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if any(s > k for s, k in zip(self.stride, self.kernel_size)):
            raise ValueError(f"stride must be at most kernel_size {self.kernel_size}, got {self.stride}")

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        kernel_h, kernel_w = self.kernel_size
        table = torch.empty(num_heads, 2 * kernel_h - 1, 2 * kernel_w - 1, **dd) if rel_bias else None
        self.rpb = nn.Parameter(table) if rel_bias else None
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        if attn_drop > 0:
            warn_attn_drop(attn_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the relative table anew; the projections belong to themselves."""
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that a decaying optimiser should leave alone: the table is a set of biases."""
        return set() if self.rpb is None else {"rpb"}

    def extra_repr(self) -> str:
        said = f"num_heads={self.num_heads}, kernel={self.kernel_size}, dilation={self.dilation}, stride={self.stride}"
        return f"{said}, pad_small={self.pad_small}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        axes = list(zip(self.kernel_size, self.dilation, self.stride))
        if self.pad_small:
            padded = pad_to_least(x, tuple(k * d for k, d, _ in axes))
        else:
            padded = x
            axes = [clamp_neighborhood(n, *axis) for n, axis in zip((height, width), axes)]
        kernel, dilation, stride = zip(*axes)
        bias = self._table(kernel)
        qkv = self.qkv(padded).unflatten(-1, (3, self.num_heads, self.head_dim))
        if self.training and self.attn_drop > 0:
            out = _attend_dropping(qkv, axes, bias, self.attn_drop)
        else:
            out = neighborhood_attention_packed(qkv, kernel, dilation, stride, bias)
        out = self.proj_drop(self.proj(out.flatten(-2)))
        return out if padded is x else crop(out, height, width)

    def _table(self, kernel: tuple[int, int]) -> torch.Tensor | None:
        """The relative table, or its centre [num_heads, 2 * kernel_h - 1, 2 * kernel_w - 1] for a cut kernel."""
        if self.rpb is None or kernel == self.kernel_size:
            return self.rpb
        (cut_h, cut_w), (full_h, full_w) = kernel, self.kernel_size
        return self.rpb[:, full_h - cut_h : full_h + cut_h - 1, full_w - cut_w : full_w + cut_w - 1]


def _attend_dropping(
    qkv: torch.Tensor, axes: list[tuple[int, int, int]], bias: torch.Tensor | None, rate: float
) -> torch.Tensor:
    """The op with dropout of its attention probabilities, on gathered windows: [B, H, W, 3, heads, D] -> [..., D].

    ``axes`` holds (kernel, dilation, stride) of rows and of columns.
    """
    (rows, rows_relative), (columns, columns_relative) = (
        _axis_windows(n, *axis, qkv.device) for n, axis in zip(qkv.shape[1:3], axes)
    )
    q, k, v = qkv.unbind(3)
    places = rows[:, None, :, None], columns[None, :, None, :]  # broadcast to [H, W, kernel_h, kernel_w]
    keys, values = k[:, *places], v[:, *places]  # [B, H, W, kernel_h, kernel_w, heads, D]
    logits = torch.einsum("bhwnd,bhwyxnd->bhwnyx", q * q.shape[-1] ** -0.5, keys)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        table = bias[:, rows_relative[:, None, :, None], columns_relative[None, :, None, :]]  # [heads, H, W, kh, kw]
        logits = logits + table.permute(1, 2, 0, 3, 4)
    weights = nn.functional.dropout(logits.flatten(-2).softmax(-1), rate).view_as(logits).to(v.dtype)
    return torch.einsum("bhwnyx,bhwyxnd->bhwnd", weights, values)


def _axis_windows(
    n: int, kernel: int, dilation: int, stride: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's keys along an axis [n, kernel], and their places in the relative table [n, kernel]."""
    position = torch.arange(n, device=device)
    group, number = position % dilation, position // dilation
    length = (n - group + dilation - 1) // dilation
    leader = torch.minimum(number // stride * stride + stride // 2, length - 1)
    start = torch.minimum((leader - kernel // 2).clamp(min=0), length - kernel)
    seen = start[:, None] + torch.arange(kernel, device=device)
    return seen * dilation + group[:, None], seen - number[:, None] + kernel - 1
