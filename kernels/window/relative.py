"""Tables of relative positions, laid out as one number for each pair of a window's positions."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._tracing import exporting, transformed


def relative_index(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Entry of a table of relative positions for each pair of a window's positions, [N queries, N keys].

    The table lists the displacements query minus key in reading order, (2 h - 1) x (2 w - 1) of them (Swin's order).
    """
    rows, columns = (torch.arange(n, device=device) for n in window)
    y = rows[:, None] - rows[None, :] + window[0] - 1  # [query row, key row]
    x = columns[:, None] - columns[None, :] + window[1] - 1
    index = y[:, None, :, None] * (2 * window[1] - 1) + x[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


def relative_inverse(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Pairs of each entry of the table, [(2 h - 1) * (2 w - 1), N]: the q-th is the pair of query q, q * N + key.

    Where a query has no key at that displacement it is N * N, one behind the last pair.
    """
    (h, w), n = window, window[0] * window[1]
    entry = torch.arange((2 * h - 1) * (2 * w - 1), device=device)[:, None]
    query = torch.arange(n, device=device)
    y = query // w - entry // (2 * w - 1) + h - 1
    x = query % w - entry % (2 * w - 1) + w - 1
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    return torch.where(inside, query * n + y * w + x, n * n)


class _LayOut(torch.autograd.Function):
    """Reads the table by the index; the gradient is gathered too, by the inverse.

    The usual gradient of an index adds up what meets in an entry: by sorting, which takes many launches, or, compiled,
    by atomic additions in any order.
    """

    @staticmethod
    def forward(ctx, table: Tensor, window: tuple[int, int]) -> Tensor:
        ctx.window = window
        return table.flatten(1)[:, relative_index(window, table.device)]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        inverse = relative_inverse(ctx.window, grad.device)
        return pad(grad.flatten(1), (0, 1))[:, inverse].sum(-1).unflatten(1, [2 * n - 1 for n in ctx.window]), None


def lay_out(table: Tensor, window: tuple[int, int]) -> Tensor:
    """A table [heads, 2 h - 1, 2 w - 1] of displacements query minus key as a bias for all pairs, [heads, N, N].

    The gradient is summed in a fixed order.
    """
    if torch.is_grad_enabled() and table.requires_grad and not exporting() and not transformed():
        return _LayOut.apply(table, window)
    return table.flatten(1)[:, relative_index(window, table.device)]
