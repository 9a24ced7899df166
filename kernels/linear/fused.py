"""Injective linear attention in Triton: what is launched, and when it can run.

Two passes over the tokens each way. Forward: sums over k and v; out from q (and v's neighbours). Backward: dq from the
gradient, and in the same pass sums over q and the gradient; dk, dv and the filters' gradient. Each tensor is read once,
v and the gradient twice where there is a residual. Heads wider than 64 channels go in blocks of 64.
"""

import functools

import torch
from torch import Tensor

from .. import _host as host
from .._launch import launch, unspecialised
from . import passes, tuning

COLLECT, APPLY, BACKWARD_KEYS, BACKWARD_FILTERS = (
    unspecialised(kernel)
    for kernel in (passes.collect, passes.apply, passes.backward_keys, passes.backward_filters)
)
FORWARD, QUERIES, KEYS, VALUES = range(4)  # as in passes
SLICE, WHOLE = tuning.SLICE, tuning.WHOLE


def unsupported(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, grid: tuple[int, int]) -> str | None:
    """Why the fused kernels cannot take these tensors, or None."""
    return host.unsupported(q, k, v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, grid: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, W, heads, Dv] contiguous in q's dtype, sums [B, heads, D * Dv + D + Dv] float32)."""
    out = torch.empty(v.shape, device=q.device, dtype=q.dtype)
    if out.numel() == 0:
        return out, out.new_empty(out.shape[0], out.shape[3], _numbers(q, v), dtype=torch.float32)
    q, k, v, tokens = host.tokens(q), host.tokens(k), host.tokens(v), out.flatten(1, 2)
    call = _Call(q, k, v, tokens, residual=residual, grid=grid, scale=scale)
    sums = call.collect(k, v)
    call.apply(FORWARD, q, tokens, sums, near=v)
    return out, sums


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, out: Tensor, sums: Tensor,
    grid: tuple[int, int], scale: float, dq: Tensor, dk: Tensor, dv: Tensor, residual_grad: bool,
) -> Tensor | None:  # fmt: skip
    """Writes into dq, dk, dv (shaped as q, k, v; last dimension contiguous); returns residual's float32 gradient."""
    if out.numel() == 0:
        return torch.zeros(residual.shape, device=q.device, dtype=torch.float32) if residual_grad else None
    q, k, v, grad, dq, dk, dv = (host.tokens(x) for x in (q, k, v, grad_out.contiguous(), dq, dk, dv))
    call = _Call(q, k, v, grad, dq, dk, dv, residual=residual, grid=grid, scale=scale)
    if call.plan.narrow:
        return call.backward_keys(k, v, grad, sums, call.collect(q, grad, sums, dq), dk, dv, residual_grad)
    grads = call.collect(q, grad)
    call.apply(QUERIES, grad, dq, sums)
    call.apply(KEYS, v, dk, sums, grads)
    call.apply(VALUES, k, dv, sums, grads, near=grad)
    return call.backward_filters(v, grad) if residual_grad else None


def _numbers(q: Tensor, v: Tensor) -> int:
    """How many sums a head has."""
    d, dv = q.shape[-1], v.shape[-1]
    return d * dv + d + dv


class _Plan:
    """The launches' constants for one shape of heads and dtype: worked out once, since they cost more than a launch."""

    def __init__(self, d: int, dv: int, dtype: torch.dtype, align: int, tf32: bool) -> None:
        bd, bdv = min(host.padded(d), tuning.BLOCK), min(host.padded(dv), tuning.BLOCK)
        wide = dtype == torch.float32
        plain = dict(D=d, DV=dv, ALIGN=align, UPCAST=host.INTERPRETED and dtype == torch.bfloat16)
        shared = plain | dict(PRECISION="tf32" if wide and tf32 else "ieee")
        self.narrow = max(d, dv) <= tuning.BLOCK

        def blocks(name: str, n: int, size: int) -> list[dict]:
            return [{name: c, f"N{name}": min(size, n - c), f"B{name}": size} for c in range(0, n, size)]

        self.collect = [
            [shared | x | y | tuning.collect(bd, bdv, wide) | dict(QUERY=query)
             for x in blocks("X", d, bd) for y in blocks("Y", dv, bdv)]
            for query in (False, True)
        ]  # fmt: skip
        self.apply = {}
        for kind in (FORWARD, QUERIES, KEYS, VALUES):
            (rows, br), (columns, bc) = ((d, bd), (dv, bdv)) if kind in (FORWARD, VALUES) else ((dv, bdv), (d, bd))
            for near in (False, True):
                self.apply[kind, near] = [
                    shared | c | tuning.apply(bd, bdv, wide, near) | dict(KIND=kind, ROWS=rows, BR=br, RESIDUAL=near)
                    for c in blocks("C", columns, bc)
                ]
        self.keys = {
            (near, grad): shared | tuning.keys(bd, bdv, wide, near) | dict(BD=bd, BDV=bdv, RESIDUAL=near, GRAD=grad)
            for near, grad in ((False, False), (True, False), (True, True))
        }
        plain.pop("D")
        self.filters = [plain | c | tuning.filters() for c in blocks("C", dv, bdv)]


_plan = functools.lru_cache(maxsize=1024)(_Plan)


class _Call:
    """One call's numbers, and its launches."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *others: Tensor, residual: Tensor | None, grid: tuple[int, int],
        scale: float,
    ) -> None:  # fmt: skip
        batch, tokens, heads, d = q.shape
        self.scale, self.sums_shape = scale, (batch, heads, _numbers(q, v))
        self.slices = -(-tokens // SLICE)  # as long as each other, but for whole tiles
        length = -(-tokens // self.slices // WHOLE) * WHOLE
        self.programs = batch * heads * self.slices
        self.numbers = (tokens, heads, self.slices, length)
        self.map = (tokens - grid[0] * grid[1], *grid)
        _, self.align = host.strides(q, k, v, *others)
        self.plan = _plan(d, v.shape[-1], q.dtype, self.align, host.tf32())
        self.filters = None
        if residual is not None:
            self.filters = torch.empty(batch, heads, 9, v.shape[-1], device=q.device, dtype=torch.float32)
            self.filters.copy_(residual.flatten(3).transpose(2, 3))

    def _strides(self, *tensors: Tensor) -> list[int]:
        return [s // self.align for x in tensors for s in x.stride()[:3]]

    def collect(self, x: Tensor, y: Tensor, sums: Tensor | None = None, dq: Tensor | None = None) -> Tensor:
        """Sums of x^T y, x and y over all tokens; with the sums of k and v also dq, of queries x and a gradient y."""
        batch, heads, numbers = self.sums_shape
        partial = torch.empty(batch, heads, self.slices, numbers, device=x.device, dtype=torch.float32)
        query = dq is not None
        for constants in self.plan.collect[query]:
            launch(COLLECT, self.programs, constants, x, y, sums if query else partial, dq if query else x, partial,
                   *self._strides(x, y, dq if query else x), *self.numbers, self.scale)  # fmt: skip
        return partial.sum(2) if self.slices > 1 else partial[:, :, 0]

    def apply(
        self, kind: int, x: Tensor, out: Tensor, sums: Tensor, grads: Tensor | None = None, near: Tensor | None = None
    ) -> None:
        """Writes what x gives under a factor; ``near``: whose neighbours the filters see."""
        local = near is not None and self.filters is not None
        near = near if local else x
        for constants in self.plan.apply[kind, local]:
            launch(APPLY, self.programs, constants, x, near, self.filters if local else sums, sums,
                   sums if grads is None else grads, out, *self._strides(x, near, out), *self.numbers, *self.map,
                   self.scale)  # fmt: skip

    def backward_keys(
        self, k: Tensor, v: Tensor, grad: Tensor, sums: Tensor, grads: Tensor, dk: Tensor, dv: Tensor, wanted: bool
    ) -> Tensor | None:
        """dk, dv and, where wanted, the filters' gradient in one pass."""
        partial = self._partial(v) if wanted else sums
        launch(BACKWARD_KEYS, self.programs, self.plan.keys[self.filters is not None, wanted], k, v, grad,
               sums if self.filters is None else self.filters, sums, grads, dk, dv, partial,
               *self._strides(k, v, grad, dk, dv), *self.numbers, *self.map, self.scale)  # fmt: skip
        return self._summed(partial) if wanted else None

    def backward_filters(self, v: Tensor, grad: Tensor) -> Tensor:
        """The filters' gradient by itself."""
        partial = self._partial(v)
        for constants in self.plan.filters:
            launch(BACKWARD_FILTERS, self.programs, constants, v, grad, partial, *self._strides(v, grad),
                   *self.numbers, *self.map)  # fmt: skip
        return self._summed(partial)

    def _partial(self, v: Tensor) -> Tensor:
        batch, _, heads, dv = v.shape
        return torch.empty(batch, heads, self.slices, 9, dv, device=v.device, dtype=torch.float32)

    def _summed(self, partial: Tensor) -> Tensor:
        found = partial.sum(2) if self.slices > 1 else partial[:, :, 0]
        return found.transpose(2, 3).unflatten(3, (3, 3)).contiguous()
