"""Attention weights drawn over an image: one layer's heads, or a sheet of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .source import Picture, position, tokens
from .style import pyplot, save
from .weights import Layer, Look

MARK = "#39ff14"  # of the query: a colour that neither images nor the maps below hold
POSITIVE, SIGNED = "inferno", "RdBu_r"


def choose_heads(look: Look, head: int | str, heads: int) -> list[tuple[str, Tensor, Tensor, dict[str, float]]]:
    """What the panels of a layer show: name, weights [H, W], support [H, W], and the shares that lie elsewhere.

    Args:
        look: of the layer.
        head: a number from 0, "mean" or "all".
        heads: how many the layer has.

    Raises:
        ValueError: for a head that the layer does not have.
    """
    if head == "mean":
        rest = {name: float(share.mean()) for name, share in look.rest.items()}
        return [("mean of heads" if heads > 1 else "head 0", look.weights.mean(0), look.support.any(0), rest)]
    if head != "all" and not 0 <= int(head) < heads:
        raise ValueError(f"head must be a number from 0 to {heads - 1}, mean or all, got {head}")
    return [
        (f"head {i}", look.weights[i], look.support[i], {name: float(share[i]) for name, share in look.rest.items()})
        for i in (range(heads) if head == "all" else [int(head)])
    ]


def _cells(values: np.ndarray, pixels: tuple[int, int], steps: tuple[float, float], scale: int) -> np.ndarray:
    """A map [H, W] laid out over the image, ``scale`` rows and columns a pixel of the network; the last row and column
    also cover what a stem cut off."""
    rows, columns = (
        np.minimum((np.arange(n * scale) / scale / step).astype(int), m - 1)
        for n, step, m in zip(pixels, steps, values.shape)
    )
    return values[rows][:, columns]


def _paint(axis, picture: Picture, size: tuple[int, int], at: tuple[int, int], weights: Tensor, support: Tensor):
    """Draws the image, dark where the query sees nothing, the weights over the rest, and the query; returns what a
    colour bar is for."""
    height, width = picture.size
    steps, scale = tokens(picture.size, size), max(1, 640 // max(picture.size))
    frame = (0, width, height, 0)
    values, seen = (_cells(x.numpy(), picture.size, steps, scale) for x in (weights, support))
    signed = bool((weights < -1e-3 * weights.abs().max()).any())
    top = max(float(weights.abs().max()), 1e-12)
    axis.imshow(picture.image, extent=frame, interpolation="antialiased")
    axis.imshow(np.zeros((*seen.shape, 3)), extent=frame, alpha=np.where(seen, 0.0, 0.62), interpolation="nearest")
    strength = np.where(seen, (0.10 if signed else 0.25) + (0.80 if signed else 0.60) * np.abs(values) / top, 0.0)
    shown = axis.imshow(values, extent=frame, alpha=strength, cmap=SIGNED if signed else POSITIVE,
                        vmin=-top if signed else 0, vmax=top, interpolation="nearest")  # fmt: skip
    if not support.all():
        axis.contour(np.linspace(0.5 / scale, width - 0.5 / scale, seen.shape[1]),
                     np.linspace(0.5 / scale, height - 0.5 / scale, seen.shape[0]), seen.astype(float), [0.5],
                     colors="white", linewidths=0.7, alpha=0.8)  # fmt: skip
    y, x = (place * step for place, step in zip(at, steps))
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x, y), steps[1], steps[0], fill=False, edgecolor=MARK, linewidth=1.6))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return shown


def _said(rest: dict[str, float]) -> str:
    return ", ".join(f"{share:.0%} on {name}" for name, share in rest.items() if abs(share) >= 0.005)


def draw_layer(picture: Picture, layer: Layer, point: tuple[float, float], head: int | str, target: Path,
               title: str) -> tuple[int, int]:  # fmt: skip
    """Draws where the query under a point of the network's image looks in one layer, a panel a head, into a PNG.

    Returns the query's row and column on the layer's map.

    Raises:
        ValueError: for a layer without places on the image, or an unknown head.
        UserError: where the picture cannot be written.
    """
    at = position(point, picture.size, layer.size)
    look = layer.look(*at)
    panels = choose_heads(look, head, layer.heads)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    height, width = picture.size
    each = 5.6 if len(panels) == 1 else 3.3
    tall = each * height / width
    figure, axes = pyplot().subplots(rows, columns, figsize=(columns * (each + 0.7), rows * (tall + 0.35) + 0.75),
                                     squeeze=False, layout="constrained")  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, weights, support, rest) in zip(axes.flat, panels):
        shown = _paint(axis, picture, layer.size, at, weights, support)
        bar = figure.colorbar(shown, ax=axis, fraction=0.04, pad=0.015)
        bar.ax.tick_params(labelsize=7)
        ticks = _ticks(shown)
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        axis.set_title(", ".join(filter(None, (name, _said(rest)))), fontsize=9)
    figure.suptitle(f"{title}\n{layer.name}: {layer.setting}\nquery at row {at[0]}, column {at[1]} of a "
                    f"{layer.size[0]}x{layer.size[1]} map", fontsize=10)  # fmt: skip
    save(figure, target)
    return at


def _ticks(shown) -> list[float]:
    low, high = shown.get_clim()
    return [low, 0, high] if low < 0 else [0, high / 2, high]


def draw_sheet(picture: Picture, layers: Sequence[Layer], point: tuple[float, float], target: Path,
               title: str) -> None:  # fmt: skip
    """Draws where the query under a point looks in every layer, mean over heads, a panel a layer, into a PNG.

    Raises:
        ValueError: where there is no layer.
        UserError: where the picture cannot be written.
    """
    if not layers:
        raise ValueError("this model has no layer that attends over a map")
    columns = min(min((5, 6, 4), key=lambda n: -len(layers) % n), len(layers))  # the fewest empty places
    rows = -(-len(layers) // columns)
    height, width = picture.size
    tall = 2.3 * height / width + 0.55
    figure, axes = pyplot().subplots(rows, columns, figsize=(columns * 2.4, rows * tall + 0.35), squeeze=False,
                                     layout="constrained")  # fmt: skip
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    for axis, layer in zip(axes.flat, layers):
        rest: dict[str, float] = {}
        if layer.spatial:
            at = position(point, picture.size, layer.size)
            ((_, weights, support, rest),) = choose_heads(layer.look(*at), "mean", layer.heads)
            _paint(axis, picture, layer.size, at, weights, support)
        else:
            axis.imshow(picture.image, extent=(0, width, height, 0), alpha=0.25)
            axis.text(width / 2, height / 2, "between channels:\nno place on the image", ha="center", va="center",
                      fontsize=8.5)  # fmt: skip
            axis.set(xticks=[], yticks=[])
        lines = [layer.name.replace("stages.", "").replace("blocks.", ""), layer.setting, _said(rest)]
        axis.set_title("\n".join(filter(None, lines)), fontsize=8.5)
    figure.suptitle(f"{title}: where one query looks, mean over heads; colours reach to each panel's maximum",
                    fontsize=10.5)  # fmt: skip
    save(figure, target)
