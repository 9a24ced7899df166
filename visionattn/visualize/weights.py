"""Attention weights, read off the op that computes them.

Every op of the zoo gives ``out = A v`` for weights A that do not depend on the values. So the gradient of one query's
output by the values *is* its row of A: bias, mask, shift, stride and sampled places are all in it, and nothing about
any op has to be written a second time. A row of all heads costs one forward and one backward pass of the op's
reference, in float64; nothing of the size tokens x tokens is ever held.

With q = k = 0 and no bias the weights are equal over all keys that a query can see: that gives its support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visionattn.kernels._register import FUNCTIONS

BIASES = ("bias", "residual")  # extras that change weights, or add some, but not which keys softmax can see
ZERO_KEYS = ("halo_attention", "varied_window_attention")  # ops whose keys outside the map take softmax weight


def global_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attention of all positions to all, in the kernels' layout [B, H, W, heads, D]."""
    flat = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    return scaled_dot_product_attention(*flat, scale=scale).transpose(1, 2).reshape(*q.shape[:4], v.shape[4])


@dataclass(frozen=True)
class Look:
    """Where one query looks, head by head; weights over everything sum to 1 plus those of the local residual.

    Attributes:
        weights: float64 [heads, H, W] over the map. InLine's are implied ones: they may be negative, and are the mean
            over a head's channels where its local residual weighs those differently.
        support: bool [heads, H, W], the positions that the query can see at all.
        rest: share of each head that lies elsewhere, by name: "padding", "zero keys", "class token", float64 [heads].
        local: the part of ``weights`` that a local residual adds, float64 [heads, H, W], or None.
    """

    weights: Tensor
    support: Tensor
    rest: dict[str, Tensor]
    local: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One call of an attention op, by the first image of its batch.

    Attributes:
        op: the op's name, as ``neighborhood_attention``; ``global_attention`` for PyTorch's own.
        tensors: q, k and v, [1, H, W, heads, D], float64.
        extras: further tensors of the op, by name.
        parameters: what the op takes behind them: its geometry and the scale.
        size: rows and columns of the map, without the padding that a layer put behind it.
    """

    op: str
    tensors: tuple[Tensor, Tensor, Tensor]
    extras: dict[str, Tensor | None]
    parameters: tuple
    size: tuple[int, int]

    @property
    def spatial(self) -> bool:
        """Whether its weights are those of positions; channel attention's are not."""
        return self.op != "channel_attention"

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return self.tensors[2].shape[3]

    @property
    def before(self) -> int:
        """Tokens in front of the map: a class token."""
        if self.op != "linear_attention":
            return 0
        grid, keys = self.parameters[0], self.tensors[1]
        return keys.shape[1] * keys.shape[2] - grid[0] * grid[1]

    @property
    def setting(self) -> str:
        """What kind of attention it is, in words."""
        shared = self.op == "window_attention" and self.tensors[0].shape != self.tensors[1].shape
        return _setting(self.op, self.extras, self.parameters) + (", shared queries" if shared else "")

    def attend(self, values: Tensor, equal: bool = False) -> Tensor:
        """The op with other values [1, H, W, heads, Dv]; ``equal``: and all keys that are seen weighing the same."""
        q, k, _ = self.tensors
        extras = self.extras
        if equal:
            q, k = torch.zeros_like(q), torch.zeros_like(k)
            extras = {name: None if name in BIASES else x for name, x in extras.items()}
        return self._function()(q, k, values, *extras.values(), *self.parameters)

    def _function(self) -> Callable[..., Tensor]:
        return global_attention if self.op == "global_attention" else FUNCTIONS[self.op].op.reference

    def query(self, y: int, x: int) -> tuple[int, int]:
        """Where in the op's output the query of position (y, x) of the map stands."""
        if self.op == "halo_attention":
            stride = self.parameters[0].stride
            return y // stride[0], x // stride[1]
        if self.before:
            return 0, self.before + y * self.parameters[0][1] + x
        return y, x

    def row(self, y: int, x: int, equal: bool = False) -> Tensor:
        """Weights of the query at (y, x) on all keys that the op has, [heads, H, W] with its padding and tokens."""
        values = torch.zeros_like(self.tensors[2]).requires_grad_()
        if equal:  # all channels alike: one tells
            values = values.detach()[..., :1].requires_grad_()
        with torch.enable_grad():
            y, x = self.query(y, x)
            (row,) = torch.autograd.grad(self.attend(values, equal)[0, y, x].mean(-1).sum(), values)
        return row[0].sum(-1).movedim(-1, 0)

    def look(self, y: int, x: int) -> Look:
        """Where the query at row ``y`` and column ``x`` of the map looks.

        Raises:
            ValueError: where the op is not spatial, or the map has no such position.
        """
        if not self.spatial:
            raise ValueError("this is attention between channels: its weights have no place on the image")
        if not (0 <= y < self.size[0] and 0 <= x < self.size[1]):
            raise ValueError(f"position must lie on the map of {self.size[0]} x {self.size[1]}, got ({y}, {x})")
        row = self.row(y, x)
        weights, rest = self._on_map(row)
        if self.op in ZERO_KEYS:
            rest["zero keys"] = 1 - row.sum((1, 2))
        local = None
        if self.extras.get("residual") is not None:
            plain = Call(self.op, self.tensors, dict(self.extras, residual=None), self.parameters, self.size)
            local = weights - plain._on_map(plain.row(y, x))[0]
        return Look(weights, self._on_map(self.row(y, x, equal=True))[0] != 0, rest, local)

    def _on_map(self, row: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A row's part on the map [heads, *size], and the sums of its other parts."""
        rest = {}
        if self.before:
            row = row.flatten(1)
            rest["class token"] = row[:, : self.before].sum(1)
            row = row[:, self.before :].unflatten(1, self.parameters[0])
        height, width = self.size
        on_map = row[:, :height, :width]
        if row.shape[1:] != on_map.shape[1:]:
            rest["padding"] = row.sum((1, 2)) - on_map.sum((1, 2))
        return on_map, rest

    def matrix(self) -> Tensor:
        """All queries' supports at once, for small maps: bool [H * W queries, heads, H, W keys].

        The op's output over one-hot values; H * W channels wide.
        """
        _, height, width, heads, _ = self.tensors[1].shape
        one_hot = torch.eye(height * width, dtype=torch.float64).view(1, height, width, 1, -1)
        out = self.attend(one_hot.expand(-1, -1, -1, heads, -1), equal=True)  # [1, Hq, Wq, heads, H * W]
        return out[0].flatten(0, 1).unflatten(-1, (height, width)) != 0


@dataclass(frozen=True)
class Layer:
    """A layer that attends: the calls of ops that it made, whose heads stand side by side (CSWin makes two)."""

    name: str
    calls: tuple[Call, ...]

    @property
    def spatial(self) -> bool:
        """Whether its weights are those of positions."""
        return all(call.spatial for call in self.calls)

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return sum(call.heads for call in self.calls)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its map."""
        return self.calls[0].size

    @property
    def setting(self) -> str:
        """What kind of attention it is, in words."""
        return " + ".join(dict.fromkeys(call.setting for call in self.calls))

    def look(self, y: int, x: int) -> Look:
        """As :meth:`Call.look`, over all heads."""
        first, *others = looks = [call.look(y, x) for call in self.calls]
        if not others:
            return first
        weights, support = (torch.cat([getattr(look, name) for look in looks]) for name in ("weights", "support"))
        rest = {name: torch.cat([look.rest[name] for look in looks]) for name in first.rest}
        local = None if first.local is None else torch.cat([look.local for look in looks])
        return Look(weights, support, rest, local)


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _setting(op: str, extras: dict[str, Tensor | None], parameters: tuple) -> str:
    geometry = parameters[0]
    if op == "neighborhood_attention":
        more = [f"{name} {_pair(n)}" for name, n in zip(("dilation", "stride"), geometry[1:]) if n != (1, 1)]
        return ", ".join([f"neighborhood {_pair(geometry.kernel)}", *more])
    if op == "window_attention":
        shift = f", shift {_pair(geometry.shift)}" if geometry.shift != (0, 0) else ""
        return f"{'grid' if geometry.grid else 'window'} {_pair(geometry.window)}{shift}"
    if op == "halo_attention":
        stride = f", stride {_pair(geometry.stride)}" if geometry.stride != (1, 1) else ""
        return f"block {_pair(geometry.block)}, halo {_pair(geometry.halo)}{stride}"
    if op == "routed_attention":
        rows, columns = geometry.regions
        return f"{extras['routes'].shape[2]} of {rows}x{columns} regions"
    if op == "varied_window_attention":
        return f"varied window {_pair(geometry.window)}"
    if op == "linear_attention":
        return "linear" + (" + local residual" if extras["residual"] is not None else "")
    return op.replace("_attention", "").replace("channel", "between channels")
