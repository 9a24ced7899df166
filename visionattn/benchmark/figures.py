"""Pictures over all results of a machine: speed-ups, distance to the floor, throughput, memory against resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import lineup, summary
from .plot import STYLES, new_figure, save
from .summary import Table

Rows = Sequence[Mapping[str, str]]
PASSES = {"forward": ("o", True, "forward"), "forward_backward": ("s", False, "forward + backward")}
GRAPH = ("^", "as a CUDA graph")
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Nothing(Exception):
    """There are no results for a picture; the message says which measurement would give them."""


class Machine(NamedTuple):
    """All results of one machine.

    Attributes:
        stem: what the names of its files begin with.
        gpu: its name, with dtype and version of torch.
        ops: results of each measured op.
        models: lines of whole models.
    """

    stem: str
    gpu: str
    ops: dict[str, Table]
    models: Rows


def _points(axis, rows: Sequence[tuple[int, float]], color: str, marker: str, filled: bool, label: str) -> None:
    axis.plot([x for _, x in rows], [y for y, _ in rows], marker, color=color, mfc=color if filled else "none", ms=5.5,
              mew=1.2, ls="none", label=label)  # fmt: skip


def _panels(machine: Machine, target: Path, title: str, draw: Callable, note: str, xlabel: str) -> None:
    """A panel an op, a line a shape; ``draw(axis, op, table)`` puts the points there."""
    ops = list(machine.ops)
    heights = [len(table) + 1.6 for table in machine.ops.values()]
    figure, axes = new_figure(10, 0.205 * sum(heights) + 0.25 * len(ops) + 1.2, len(ops), heights)
    for axis, op in zip(axes.flat, ops):
        table = machine.ops[op]
        draw(axis, op, table)
        axis.set_xscale("log")
        axis.set_yticks(range(len(table)), [case.name for case in table], fontsize=8)
        axis.set_ylim(len(table) - 0.4, -0.6)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(op.replace("_", " "), loc="left", fontsize=9.5, weight="bold")
        axis.tick_params(axis="x", labelsize=8)
    low, high = (pick(axis.get_xlim()[side] for axis in axes.flat) for side, pick in enumerate((min, max)))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    for axis in axes.flat:
        axis.set_xlim(low, high)
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.minorticks_off()
        if low < 1:
            axis.axvspan(low, 1, color="#d62728", alpha=0.07, lw=0)
            axis.axvline(1, color="#444444", lw=1.2)
        axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.flat[-1].set_xlabel(xlabel, fontsize=9)
    figure.suptitle(f"{title}\n{machine.gpu}; {note}", fontsize=10.5)
    save(figure, target)


def draw_speedups(machine: Machine, target: Path) -> None:
    """How many times as long each peer takes, shape by shape; what lies left of 1x is lost.

    Raises:
        Nothing: where no op was measured beside a peer.
    """
    if not machine.ops:
        raise Nothing("no kernel was measured: visionattn benchmark kernels --op ...")

    def draw(axis, op: str, table: Table) -> None:
        for peer, words in summary.OPS[op].peers.items():
            if peer in ("floor", "best"):
                continue
            for name, (marker, filled, said) in PASSES.items():
                ratios = [(place, r) for place, cells in enumerate(table.values())
                          if (r := summary.ratio(cells, "ours", name, peer))]  # fmt: skip
                if ratios:
                    _points(axis, ratios, STYLES[peer][0], marker, filled, f"{words}, {said}")

    _panels(machine, target, "Speed-up over other implementations, a line a shape", draw, "medians, eager calls",
            "times as fast (logarithmic); left of 1x the other one is faster")  # fmt: skip


def draw_floor(machine: Machine, target: Path) -> None:
    """How many times the hardware's floor our kernels take, shape by shape.

    Raises:
        Nothing: where no op was measured beside the floor.
    """
    if not any(summary.median_ms(cells, "floor", "forward") for t in machine.ops.values() for cells in t.values()):
        raise Nothing("no kernel was measured beside the floor: visionattn benchmark kernels --op ...")

    def draw(axis, op: str, table: Table) -> None:
        for name, (marker, filled, said) in PASSES.items():
            found = [(place, 1 / r) for place, cells in enumerate(table.values())
                     if (r := summary.ratio(cells, "ours", name, "floor"))]  # fmt: skip
            _points(axis, found, STYLES["ours"][0], marker, filled, said)
        graphs = []
        for place, cells in enumerate(table.values()):
            ms = cells.get(("ours", "forward_backward"), {}).get("graph_p50_ms")
            floor = summary.median_ms(cells, "floor", "forward_backward")
            if ms and floor:
                graphs.append((place, float(ms) / floor))
        if graphs:
            _points(axis, graphs, STYLES["natten"][0], GRAPH[0], False, f"forward + backward,\n{GRAPH[1]}")

    _panels(machine, target, "Distance to the hardware's floor, a line a shape", draw,
            "floor: unavoidable bytes or products", "times the floor (logarithmic; left is better)")  # fmt: skip


def draw_throughput(machine: Machine, target: Path) -> None:
    """Images a second against parameters, a panel a pass, a point a model, for the commonest batch and size.

    Raises:
        Nothing: where no model was measured.
    """
    rows = [row for row in machine.models if row["images_per_s"] and row["parameters_m"]]
    if not rows:
        raise Nothing("no whole model was measured: visionattn benchmark models --models ...")
    keys = [(row["batch"], row["size"], row["dtype"]) for row in rows]
    common = max(dict.fromkeys(keys), key=keys.count)
    rows = lineup.fastest(row for row, key in zip(rows, keys) if key == common)
    rows = [row for row in rows if not row["model"].startswith(("reference/", "natten/", "unbiased/"))]
    passes = [name for name in ("training", "inference") if any(row["pass"] == name for row in rows)]
    if not passes:
        raise Nothing("no model was measured as it comes: visionattn benchmark models --models ...")
    figure, axes = new_figure(11, 5.4, len(passes), share=False)
    for axis, name in zip(axes.flat, passes):
        mine = [row for row in rows if row["pass"] == name]
        sizes, rates = ([float(row[column]) for row in mine] for column in ("parameters_m", "images_per_s"))
        for other in (False, True):  # to the left: the same sizes lie close together
            chosen = [i for i, row in enumerate(mine) if lineup.is_peer(row["model"]) == other]
            heights = lineup.spread([rates[i] for i in chosen], 0.042 * max(rates))
            color = STYLES["natten" if other else "ours"][0]
            edge = min(sizes) - 0.6 if other else max(sizes) + 0.6
            for i, height in zip(chosen, heights):
                eager = mine[i]["compiled"] == "no"
                axis.plot(sizes[i], rates[i], "o", color=color, mfc="none" if eager else color, ms=7, zorder=3)
                axis.annotate(mine[i]["model"].replace("_patch4_window7_224", ""), (sizes[i], rates[i]), (edge, height),
                              fontsize=7.5, ha="right" if other else "left", va="center", textcoords="data",
                              arrowprops=dict(arrowstyle="-", color=color, lw=0.5, alpha=0.5))  # fmt: skip
        room = 0.75 * (max(sizes) - min(sizes)) + 3
        axis.set(title=name, xlabel="parameters, M", ylabel="images a second")
        axis.set_xlim(max(0, min(sizes) - room), max(sizes) + room)
        axis.set_ylim(0, 1.2 * max(rates))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    batch, size, _ = common
    figure.suptitle(f"Throughput against parameters, batch {batch}, {size}x{size}, each model's fastest mode: "
                    f"visionattn blue, others orange; filled: compiled\n{machine.gpu}", fontsize=10.5)  # fmt: skip
    save(figure, target)


def draw_memory(machine: Machine, target: Path) -> None:
    """Peak memory against the side of the image, a line a model and pass that was measured at two sizes or more.

    Raises:
        Nothing: where there is none.
    """
    lines: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for row in machine.models:
        if row["peak_gib"]:
            key = (row["model"], row["batch"], row["compiled"], row["pass"])
            lines.setdefault(key, []).append((int(row["size"]), float(row["peak_gib"])))
    lines = {key: sorted(points) for key, points in lines.items() if len(points) > 1}
    if not lines:
        raise Nothing("no model was measured at two image sizes: visionattn benchmark models --batch 1 --size 224, "
                      "then --size 2048")  # fmt: skip
    passes = [name for name in ("training", "inference") if any(key[3] == name for key in lines)]
    figure, axes = new_figure(11, 4.8, len(passes))
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
    names = list(dict.fromkeys(key[:3] for key in lines))
    for axis, name in zip(axes.flat, passes):
        for (*which, _), points in ((key, points) for key, points in lines.items() if key[3] == name):
            place = names.index(tuple(which))
            label = f"{which[0]}, batch {which[1]}" + ("" if which[2] == "no" else ", compiled")
            style = "--" if lineup.is_peer(which[0]) else "-"
            axis.plot(*zip(*points), style, marker="o", ms=4.5, color=colors[place % len(colors)], label=label)
        sides = sorted({side for key, points in lines.items() if key[3] == name for side, _ in points})
        axis.set(title=name, xlabel="side of the image, pixels", xscale="log", yscale="log")
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7.5, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel("peak memory, GiB (logarithmic)")
    figure.suptitle(f"Memory against resolution\n{machine.gpu}", fontsize=10.5)
    save(figure, target)


FIGURES = {"speedups": draw_speedups, "floor": draw_floor, "throughput": draw_throughput, "memory": draw_memory}
