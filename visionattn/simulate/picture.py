"""Speed-up against stride, as a picture: the realistic bound of every kernel beside the one by FLOPs alone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from visionattn.training.errors import UserError

from .model import Result, as_text

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # colour-blind safe
LABELS = 16  # on the axis of strides


def draw(results: Sequence[Result], target: Path, title: str = "") -> None:
    """Draws a curve a kernel, a point a stride in the given order, into a PNG, or raises UserError."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    strides = list(dict.fromkeys(result.problem.stride for result in results))
    figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
    kernels = list(dict.fromkeys(result.problem.kernel for result in results))
    for place, kernel in enumerate(kernels):
        mine = [result for result in results if result.problem.kernel == kernel]
        color, x = COLORS[place % len(COLORS)], [strides.index(result.problem.stride) for result in mine]
        name = f"kernel {as_text(kernel)}"
        axis.plot(x, [r.flop_speedup for r in mine], "--", color=color, lw=1.2, label=f"{name}, by FLOPs alone")
        axis.plot(x, [r.speedup for r in mine], "-", color=color, lw=1.8, marker=".", ms=5, label=f"{name}, realistic")
        axis.plot(x, [r.worst_tile_speedup for r in mine], ":", color=color, lw=1.2, label=f"{name}, busiest tile")
        perfect = [(at, r.speedup) for at, r in zip(x, mine) if r.block_sparse]
        if perfect:
            label = f"{name}, perfectly block-sparse"
            axis.plot(*zip(*perfect), "o", color=color, ms=9, mfc="none", mew=1.6, label=label)
    step = 1 << (-(-len(strides) // LABELS) - 1).bit_length()
    shown = [at for at in range(len(strides)) if at == 0 or (at + 1) % step == 0]
    square = all(len(set(stride)) == 1 for stride in strides)
    names = [str(stride[0]) if square else as_text(stride) for stride in strides]
    axis.set_xticks(shown, [names[at] for at in shown], rotation=0 if square else 30)
    axis.set_xlabel("stride")
    axis.set_ylabel("speed-up over full attention, at most")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10.5)
    handles, labels = axis.get_legend_handles_labels()
    columns = max(2, min(3, len(kernels)))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8.5, ncols=columns)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        figure.savefig(temporary, dpi=110, format="png")
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        plt.close(figure)
