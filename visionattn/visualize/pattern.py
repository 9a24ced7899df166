"""Who attends to whom under a setting, without a model and an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visionattn.kernels._register import FUNCTIONS

from .weights import Call

Pair = int | tuple[int, int]
DIM = 8  # of a head: the least that the kernels take; the pattern does not depend on it
OPS = ("neighborhood", "window", "halo", "routed", "varied_window", "linear", "global")


def _both(name: str, value: Pair | None) -> tuple[int, int]:
    if value is None:
        raise ValueError(f"{name} is needed for this op")
    return (value, value) if isinstance(value, int) else tuple(value)


def make_pattern(
    op: str,
    size: tuple[int, int],
    kernel_size: Pair | None = None,
    dilation: Pair = 1,
    stride: Pair = 1,
    window_size: Pair | None = None,
    shift: Pair = 0,
    partition: str = "block",
    block_size: Pair | None = None,
    halo_size: Pair | None = None,
    regions: Pair | None = None,
    topk: int | None = None,
    routes: Sequence[int] | None = None,
    move: tuple[float, float] = (0.0, 0.0),
    stretch: tuple[float, float] = (0.0, 0.0),
) -> Call:
    """A call of an op with one head whose scores are all equal, from the op's own arguments.

    Args:
        op: one of :data:`OPS`; "window" with ``partition="grid"`` for MaxViT's grids.
        size: rows and columns of the map.
        kernel_size, dilation, stride: of "neighborhood"; ``stride`` also of "halo".
        window_size, shift, partition: of "window"; ``window_size`` also of "varied_window".
        block_size, halo_size: of "halo".
        regions, topk: of "routed": into how many the map is cut along each axis, and how many each of them attends to:
            itself and others drawn at random, the same every time, as the choice is that of queries and keys.
        routes: of "routed", in the place of ``topk``: the numbers, in reading order, that all regions attend to.
        move, stretch: of "varied_window": displacement of every window's keys (rows, columns) in positions, and by how
            much more than 1 they are stretched.

    Raises:
        ValueError: for an unknown op, a missing argument, or what the op itself refuses.
    """
    if op == "channel":
        raise ValueError("op 'channel' has no pattern: it attends between channels, over all positions alike")
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"map must have at least one row and column, got {height}x{width}")
    equal = torch.zeros(1, height, width, 1, DIM, dtype=torch.float64)
    if op == "global":
        return Call("global_attention", (equal, equal, equal), {}, (None,), size)
    q, extra = equal, ()
    if op == "neighborhood":
        name, extra = "neighborhood_attention", (_both("kernel_size", kernel_size), dilation, stride)
    elif op == "window":
        name, extra = "window_attention", (_both("window_size", window_size), shift, partition)
    elif op == "halo":
        name, geometry = "halo_attention", (_both("block_size", block_size), _both("halo_size", halo_size))
        steps = _both("stride", stride)
        q = torch.zeros(1, -(-height // max(steps[0], 1)), -(-width // max(steps[1], 1)), 1, DIM, dtype=torch.float64)
        tables = (torch.zeros(2 * (b + 2 * h) - 1, DIM, dtype=torch.float64) for b, h in zip(*geometry))
        extra = (*geometry, *tables, stride)
    elif op == "routed":
        regions = _both("regions", regions)
        name, extra = "routed_attention", (_routes(regions[0] * regions[1], topk, routes), regions)
    elif op == "varied_window":
        window = _both("window_size", window_size)
        windows = (-(-height // max(window[0], 1)), -(-width // max(window[1], 1)))
        sampling = torch.tensor([*move, *stretch], dtype=torch.float64).expand(1, *windows, 1, 4)
        name, extra = "varied_window_attention", (window, sampling)
    else:
        name = "linear_attention"
    return _call(name, q, equal, *extra)


def _routes(count: int, topk: int | None, routes: Sequence[int] | None) -> torch.Tensor:
    """[1, count, K]: see :func:`make_pattern`."""
    if (topk is None) == (routes is None):
        raise ValueError("topk or routes is needed for this op, one of them")
    if routes is not None:
        if not routes or not all(0 <= number < count for number in routes):
            raise ValueError(f"routes must name regions from 0 to {count - 1}, got {list(routes)}")
        return torch.tensor(routes).expand(1, count, -1)
    if not 1 <= topk <= count:
        raise ValueError(f"topk must lie between 1 and {count}, the number of regions, got {topk}")
    scores = torch.rand(count, count, generator=torch.Generator().manual_seed(0))
    return scores.fill_diagonal_(2.0).topk(topk).indices[None]


def _call(name: str, q: torch.Tensor, kv: torch.Tensor, *arguments: object) -> Call:
    op = FUNCTIONS[name].op
    resolved = FUNCTIONS[name].resolve(q, kv, kv, *arguments)  # checks them, as a call would
    many = 3 + len(op.extras)
    return Call(op.name, resolved[:3], dict(zip(op.extras, resolved[3:many])), resolved[many:], tuple(kv.shape[1:3]))
