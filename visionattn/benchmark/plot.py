"""Bars of the results: one picture a CSV file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from visionattn.training.errors import UserError

from . import lineup, records, simulator, summary

# Colour-blind safe, and the same for an implementation in every picture.
STYLES = {
    "floor": ("#bbbbbb", "hardware floor"),
    "ours": ("#0072b2", "visionattn"),
    "ours bias": ("#56b4e9", "visionattn, relative bias"),
    "natten": ("#d55e00", "NATTEN, best configuration"),
    "sdpa": ("#999933", "SDPA over the whole map"),
    "timm": ("#d55e00", "timm's path"),
    "timm compiled": ("#999933", "timm's path, compiled"),
    "grid_sample": ("#d55e00", "grid_sample, attention"),
    "grid_sample compiled": ("#999933", "grid_sample, attention, compiled"),
    "grid_sample sdpa": ("#aa4499", "grid_sample, SDPA"),
    "grid_sample sdpa compiled": ("#882255", "grid_sample, SDPA, compiled"),
    "gather": ("#d55e00", "gathering"),
    "gather compiled": ("#999933", "gathering, compiled"),
    "select": ("#aa4499", "selecting, SDPA"),
    "select compiled": ("#882255", "selecting, SDPA, compiled"),
    "tokens first": ("#cc79a7", "products of [N, D] matrices"),
    "tokens first compiled": ("#e6b8d0", "products of [N, D] matrices, compiled"),
    "channels first": ("#009e73", "products of [D, N] matrices"),
    "channels first compiled": ("#8fd3bc", "products of [D, N] matrices, compiled"),
    "eager": ("#d55e00", "eager PyTorch"),
    "eager compiled": ("#999933", "eager PyTorch, compiled"),
    "conv2d": ("#d55e00", "torch's conv2d, channels last"),
    "conv2d compiled": ("#999933", "torch's conv2d, channels last, compiled"),
}


def new_figure(width: float, height: float, panels: int, heights: Sequence[float] | None = None, share: bool = True):
    """Panels beside each other, with one axis of heights if ``share``; with ``heights`` one above the other."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape, more = ((1, panels), {}) if heights is None else ((panels, 1), {"height_ratios": heights})
    more["sharey"] = share and heights is None
    return plt.subplots(*shape, figsize=(width, height), layout="constrained", squeeze=False, **more)


def draw_kernels(rows: Sequence[Mapping[str, str]], target: Path) -> None:
    """A panel a pass, a group of bars a case: median milliseconds on a logarithmic axis."""
    op = rows[0]["op"]
    table = summary.by_case(rows, op)
    shown = [i for i in STYLES if any(summary.median_ms(cells, i, "forward") for cells in table.values())]
    if not shown:
        raise UserError(f"nothing to draw for {target}: no line has a time")
    figure, axes = new_figure(15, 1.6 + 0.62 * len(table), 2)
    thick = 0.8 / len(shown)
    for axis, (name, title) in zip(axes[0], (("forward", "forward"), ("forward_backward", "forward + backward"))):
        for place, implementation in enumerate(shown):
            times = [summary.median_ms(cells, implementation, name) for cells in table.values()]
            heights = [index + (place - (len(shown) - 1) / 2) * thick for index in range(len(times))]
            color, label = STYLES[implementation]
            axis.barh(heights, [ms or 0 for ms in times], thick * 0.92, color=color, label=label)
            for ms, y in zip(times, heights):
                if ms:
                    axis.annotate(f"{ms:.3g}", (ms, y), (2, 0), textcoords="offset points", va="center", fontsize=6.5)
        axis.set_xscale("log")
        axis.margins(x=0.12, y=0.01)
        axis.set_title(title)
        axis.set_xlabel("milliseconds (median, logarithmic; shorter is faster)")
        axis.grid(axis="x", which="both", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(table)), [case.name for case in table], fontsize=8.5)
    axes[0][0].invert_yaxis()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(shown), frameon=False)
    one = rows[0]
    title = f"{op.replace('_', ' ').capitalize()} {'convolution' if op == 'depthwise' else 'attention'}"
    figure.suptitle(f"{title}, {one['dtype']}, {one['gpu']}, torch {one['torch']}", fontsize=12)
    save(figure, target)


def draw_models(rows: Sequence[Mapping[str, str]], target: Path) -> None:
    """A panel for training and one for inference, a bar a model in its fastest mode: images a second."""
    rows = lineup.grouped(lineup.fastest(rows), by_mode=False)
    passes = [name for name in ("training", "inference") if any(row["pass"] == name for row in rows)]
    if not passes:
        raise UserError(f"nothing to draw for {target}: no line has a throughput")

    def label(row: Mapping[str, str]) -> str:
        return f"{row['model'].replace('_patch4_window7_224', '')}, B{row['batch']} {row['size']}x{row['size']}"

    labels = list(dict.fromkeys(label(row) for row in rows))
    figure, axes = new_figure(12, 1.5 + 0.32 * len(labels), len(passes))
    for axis, name in zip(axes[0], passes):
        found = {label(row): row for row in rows if row["pass"] == name}
        for place, key in enumerate(labels):
            if key in found:
                row = found[key]
                rate = float(row["images_per_s"])
                axis.barh(place, rate, 0.7, color=STYLES["natten" if lineup.is_peer(row["model"]) else "ours"][0])
                memory = f"  {float(row['peak_gib']):.1f} GiB" if row["peak_gib"] else ""
                text = f"{rate:,.0f}{memory}  {'eager' if row['compiled'] == 'no' else row['compiled']}"
                axis.annotate(text, (rate, place), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axis.margins(x=0.45)
        axis.set_ylim(-0.6, len(labels) - 0.4)
        axis.set_title(name)
        axis.set_xlabel("images a second")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0][0].invert_yaxis()
    one = rows[0]
    figure.suptitle(f"Whole models in their fastest mode of torch.compile, with their peak memory\n"
                    f"{one['gpu']}, {one['dtype']}, torch {one['torch']}", fontsize=11)  # fmt: skip
    save(figure, target)


def draw_simulator(rows: Sequence[Mapping[str, str]], target: Path) -> None:
    """Measured speed-up against the bound by FLOPs alone and against the realistic one, a point a setting."""
    rows = simulator.measured(rows)
    if not rows:
        raise UserError(f"nothing to draw for {target}: no line has a speed-up")
    by_size = sorted(rows, key=lambda row: -int(row["height"]))
    shapes = list(dict.fromkeys(simulator.case_of(row).shape for row in by_size))
    figure, axes = new_figure(13, 6, 2)
    values = [float(row[name]) for row in rows for name in ("flop_bound", "speedup")]
    values += [float(row["full_ms"]) / float(row["sdpa_ms"]) for row in rows]
    ends = [min(values) * 0.85, max(values) * 1.2]
    for axis, (column, title) in zip(axes[0], (("flop_bound", "bound by FLOPs alone"), ("bound", "realistic bound"))):
        axis.plot(ends, ends, color="#888888", lw=1.2, label="the bound")
        axis.plot(ends, [end * simulator.SHARE for end in ends], ":", color="#888888", lw=1.2,
                  label=f"{simulator.SHARE:.0%} of it")  # fmt: skip
        for place, shape in enumerate(shapes):
            color = list(STYLES.values())[1 + place % (len(STYLES) - 1)][0]
            batch, height, width, heads, dim = shape
            name = f"B{batch} {height}x{width} h{heads} d{dim}"
            mine = [row for row in rows if simulator.case_of(row).shape == shape]
            for perfect, marker, words in (("True", "o", "perfectly block-sparse"), ("False", "x", "partly masked")):
                points = [(float(row[column]), float(row["speedup"])) for row in mine if row["block_sparse"] == perfect]
                if points:
                    axis.plot(*zip(*points), marker, color=color, ms=6, mew=1.5, mfc="none", label=f"{name}, {words}")
            sdpa = float(mine[0]["full_ms"]) / float(mine[0]["sdpa_ms"])
            axis.axhline(sdpa, color=color, lw=0.9, ls="--", alpha=0.7, label=f"{name}, SDPA over the whole map")
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"speed-up, {title}")
        ticks = [tick for tick in (0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100) if ends[0] <= tick <= ends[1]]
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("speed-up over our kernel at kernel = map, measured")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    one = rows[0]
    figure.suptitle(f"Neighborhood attention forward, {one['dtype']}, {one['gpu']}, torch {one['torch']}", fontsize=12)
    save(figure, target)


def save(figure, target: Path) -> None:
    """Writes a PNG, the same bytes for the same picture; UserError where it cannot be written. Closes the figure."""
    from matplotlib import pyplot as plt

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        plt.close(figure)


def draw(path: Path, folder: Path) -> Path:
    """Draws the picture of one CSV file into ``folder`` and returns its path; the columns say which kind it is."""
    rows = records.read(path)
    if not rows:
        raise UserError(f"{path} holds no results")
    target = folder / f"{path.stem}.png"
    kinds = {columns: draw_kernels for columns, _ in records.KERNEL_RECORDS.values()}
    kinds |= {records.MODEL_COLUMNS: draw_models, records.SIMULATOR_COLUMNS: draw_simulator}
    kinds[records.FUSED_COLUMNS] = draw_models
    kind = kinds.get(tuple(rows[0]))
    if kind is None:
        known = "kernels, simulator or models"
        raise UserError(f"{path} is not a result of benchmark {known}: its columns are {list(rows[0])}")
    kind(rows, target)
    return target
