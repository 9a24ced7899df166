"""Draws who attends to whom, ``figures/patterns.png``, by asking the op itself: ``python benchmarks/draw_patterns.py``.

With all scores equal, a query's output over one-hot values is one over the window's size at every key it sees.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from torch import Tensor

from visionattn.kernels import neighborhood_attention

SIDE = 15
KERNEL = 5
PANELS = (
    ("neighborhood attention", 1, 1),
    ("dilation 2", 2, 1),
    ("stride 3 (generalized)", 1, 3),
    (f"stride {KERNEL} = kernel (blocked)", 1, KERNEL),
)
QUERIES = (((6, 5), "#0072b2"), ((13, 13), "#d55e00"))


def windows(dilation: int, stride: int) -> Tensor:
    """For every query the keys it sees: bool [SIDE * SIDE queries, SIDE, SIDE]."""
    equal = torch.zeros(1, SIDE, SIDE, 1, 8)
    one_hot = torch.eye(SIDE * SIDE).view(1, SIDE, SIDE, 1, SIDE * SIDE)
    out = neighborhood_attention(equal, equal, one_hot, KERNEL, dilation, stride)
    return out.view(SIDE * SIDE, SIDE, SIDE) > 0


def draw(target: Path) -> None:
    """Draws a panel a pattern: two queries, the keys they see, and the queries that share their window."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.0), layout="constrained")
    for axis, (title, dilation, stride) in zip(axes, PANELS, strict=True):
        seen = windows(dilation, stride)
        for (y, x), color in QUERIES:
            window = seen[y * SIDE + x]
            shared = (seen == window).flatten(1).all(1).view(SIDE, SIDE)
            for ky, kx in window.nonzero().tolist():
                axis.add_patch(Rectangle((kx, ky), 1, 1, facecolor=color, alpha=0.35, linewidth=0))
            for qy, qx in shared.nonzero().tolist():
                axis.plot(qx + 0.5, qy + 0.5, "o", color=color, markersize=3.5)
            axis.plot(x + 0.5, y + 0.5, "o", color=color, markersize=8)
        axis.set(xlim=(0, SIDE), ylim=(SIDE, 0), aspect="equal", title=title)
        axis.set_xticks(range(SIDE + 1), [])
        axis.set_yticks(range(SIDE + 1), [])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(length=0)
    figure.supxlabel(
        f"Two queries (large dots) on a {SIDE}x{SIDE} map, the {KERNEL}x{KERNEL} keys they see (shaded), "
        "and the queries with the very same window (small dots)",
        fontsize=10,
    )
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parent / "figures" / "patterns.png")
