"""Patterns as pictures: who attends to whom under one setting, or under all of the zoo's side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from visionattn.kernels.varied_window.reference import places

from .pattern import make_pattern
from .style import LIGHT, QUERIES, Theme, pyplot, save
from .weights import Call

SIDE = 16
VARIED = ((1, 1, (-2.2, 4.2, 0.5, 0.3)), (3, 3, (-1.6, -6.2, -0.3, 0.2)))  # window, then displacement and stretch

# title, who uses it, the setting, two queries
PANELS = (
    ("Neighborhood", "NAT", dict(op="neighborhood", kernel_size=5), ((5, 5), (14, 14))),
    ("Dilated neighborhood", "DiNAT", dict(op="neighborhood", kernel_size=5, dilation=2), ((5, 5), (14, 14))),
    ("Strided neighborhood", "GNA", dict(op="neighborhood", kernel_size=6, stride=3), ((5, 5), (14, 14))),
    ("Window", "Swin, DaViT, GC ViT, MaxViT", dict(op="window", window_size=4), ((5, 5), (14, 14))),
    ("Shifted window", "Swin", dict(op="window", window_size=4, shift=2), ((5, 5), (14, 14))),
    ("Grid", "MaxViT", dict(op="window", window_size=4, partition="grid"), ((5, 5), (14, 14))),
    ("Block and halo", "HaloNet", dict(op="halo", block_size=4, halo_size=2), ((5, 5), (14, 14))),
    ("Routed regions", "BiFormer", dict(op="routed", regions=4, topk=4), ((5, 5), (14, 14))),
    ("Varied window", "VSA", dict(op="varied_window", window_size=4), ((5, 5), (14, 14))),
    ("Linear", "InLine", dict(op="linear"), ((5, 5), (14, 14))),
)


def draw_pattern(axis, call: Call, queries: Sequence[tuple[int, int]], theme: Theme = LIGHT) -> None:
    """Draws queries (large dots), the keys that each sees (shaded by their share), and those with the very same keys
    (small dots) into matplotlib's axes."""
    from matplotlib.colors import to_rgb

    height, width = call.size
    small = height * width <= 1024  # beyond, the queries that share a window are left out
    supports = call.matrix()[:, 0] if small else None
    for (y, x), color in zip(queries, QUERIES):
        row = call.row(y, x, equal=True)[0]
        shade = torch.where(row != 0, 0.12 + 0.38 * row / row.max().clamp(min=1e-30), 0.0)
        cells = torch.cat((torch.tensor(to_rgb(color)).expand(height, width, 3), shade[..., None]), -1)
        axis.imshow(cells.numpy(), extent=(0, width, height, 0), interpolation="nearest", zorder=2)
        if supports is not None:
            _dots(axis, _sharing(call, supports, y, x), color)
        steps = _steps(call)
        y, x = (int(n // step) * step for n, step in zip((y, x), steps))
        axis.plot(x + 0.5, y + 0.5, "o", color=color, markersize=6.5, markeredgecolor=theme.page, markeredgewidth=0.8,
                  zorder=5)  # fmt: skip
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor=theme.page)
    lines = [n for n in (1, 2, 4, 8, 16, 32, 64) if max(height, width) / n <= 64][0]
    axis.set_xticks(range(0, width + 1, lines), [])
    axis.set_yticks(range(0, height + 1, lines), [])
    axis.grid(color=theme.grid, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[:].set_color(theme.faint)
    axis.spines[:].set_linewidth(0.8)


def _steps(call: Call) -> tuple[int, int]:
    return call.parameters[0].stride if call.op == "halo_attention" else (1, 1)


def _sharing(call: Call, supports: Tensor, y: int, x: int) -> list[tuple[float, float]]:
    """Where the queries lie that see exactly what the one at (y, x) sees, itself among them."""
    steps = _steps(call)
    qy, qx = call.query(y, x)
    columns = -(-call.size[1] // steps[1])
    same = (supports == supports[qy * columns + qx]).flatten(1).all(1).nonzero().flatten().tolist()
    return [(n // columns * steps[0] + 0.5, n % columns * steps[1] + 0.5) for n in same]


def _dots(axis, where: list[tuple[float, float]], color: str) -> None:
    if 1 < len(where) <= 64:  # everybody sharing everything needs no dots
        axis.plot([x for _, x in where], [y for y, _ in where], "o", color=color, markersize=2.4, zorder=4)


def draw_zoo(target: Path, theme: Theme = LIGHT) -> None:
    """Draws the patterns of all mixers of the zoo side by side into a PNG.

    Raises:
        UserError: where it cannot be written.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 5, figsize=(10, 5.05), facecolor=theme.page)
    figure.subplots_adjust(left=0.008, right=0.992, top=0.915, bottom=0.075, wspace=0.06, hspace=0.30)
    for axis, (title, users, setting, queries) in zip(axes.flat, PANELS, strict=True):
        call = make_pattern(size=(SIDE, SIDE), **setting)
        if call.op == "varied_window_attention":
            call = _varied(call)
        draw_pattern(axis, call, queries, theme)
        if call.op == "varied_window_attention":
            _samples(axis, call)
        axis.text(0.5, 1.125, title, transform=axis.transAxes, ha="center", va="center", color=theme.ink, fontsize=10.5,
                  weight="bold")  # fmt: skip
        axis.text(0.5, 1.04, users, transform=axis.transAxes, ha="center", va="center", color=theme.faint, fontsize=8.5)
    said = "Large dots: two queries.  Shaded: the keys that each attends to.  Small dots: queries with exactly the "
    said += "same keys.  Crosses: sampled places."
    figure.text(0.5, 0.03, said, ha="center", va="center", color=theme.faint, fontsize=8.8)
    save(figure, target, dpi=176)


def _varied(call: Call) -> Call:
    """Windows that look elsewhere, each by its own numbers."""
    sampling = torch.zeros_like(call.extras["sampling"])
    for row, column, numbers in VARIED:
        sampling[0, row, column, 0] = torch.tensor(numbers)
    return replace(call, extras=dict(call.extras, sampling=sampling))


def _samples(axis, call: Call) -> None:
    """Crosses where the windows of the two queries are sampled."""
    rows, columns = places(call.extras["sampling"], call.parameters[0])  # [1, M, N, 1, Y], [1, M, N, 1, X]
    for (row, column, _), color in zip(VARIED, QUERIES):
        y, x = torch.meshgrid(rows[0, row, column, 0] + 0.5, columns[0, row, column, 0] + 0.5, indexing="ij")
        axis.plot(x.flatten(), y.flatten(), "+", color=color, markersize=4.5, markeredgewidth=1.0, zorder=4)


def draw_one(call: Call, queries: Sequence[tuple[int, int]], target: Path, theme: Theme = LIGHT) -> None:
    """Draws the pattern of one setting into a PNG.

    Raises:
        UserError: where it cannot be written.
    """
    plt = pyplot()
    height, width = call.size
    long = max(height, width)
    figure, axis = plt.subplots(figsize=(max(3.6, 5.6 * width / long), max(2.0, 5.6 * height / long) + 0.45),
                                facecolor=theme.page, layout="constrained")  # fmt: skip
    draw_pattern(axis, call, queries, theme)
    seen = " and ".join(str(int((call.row(y, x, equal=True) != 0).sum())) for y, x in queries)
    axis.set_title(f"{call.setting}\non a {height}x{width} map; keys seen: {seen}", color=theme.ink, fontsize=10)
    save(figure, target, dpi=150)
