"""The README's tables, from what was measured and from the models themselves.

The kernels' and models' figures come from the CSV files of a folder, the size of each model from the model itself; each
table replaces what stands between its pair of comments in the README.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401  registers our models with timm
from visionattn.training.errors import UserError

from . import fused, lineup, records, share, simulator, summary

Rows = Sequence[dict[str, str]]
FAMILIES = ["gna_*", "nat_*", "dinat_*", "fused_*", "biformer_*", "inline_*", "vsa_*"]
OVERVIEWS = {
    "speedups": "How many times as fast as each peer, shape by shape",
    "floor": "How far from the floor, shape by shape",
}
OF_MODELS = {
    "throughput": "Images a second against parameters",
    "memory": "Peak memory against the side of the image",
}


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def _setting(row: dict[str, str]) -> str:
    versions = [f"{name} {row[name]}" for name in ("torch", "triton", "natten", "timm") if row[name]]
    return f"{row['gpu']}, {row['dtype']}, {', '.join(versions)}"


def _pair(cells: dict, implementation: str) -> str:
    values = [summary.median_ms(cells, implementation, name) for name in summary.PASS_NAMES]
    return " / ".join("-" if ms is None else f"{ms:.3g}" for ms in values)


def kernels(path: Path) -> str:
    """One machine's kernel results: setting, table, speed-ups, first calls, picture."""
    rows = records.read(path, records.KERNEL_COLUMNS)
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        table = summary.by_case(mine, dtype=dtype)
        lines = []
        for case, cells in table.items():
            ratios = [summary.ratio(cells, "ours", name) for name in summary.PASS_NAMES]
            memory = [cells.get((i, "forward_backward"), {}).get("peak_mib") or "-" for i in ("ours", "natten")]
            columns = [_pair(cells, i) for i in ("floor", "ours", "ours packed", "ours bias", "natten", "sdpa")]
            speed = " / ".join("-" if r is None else f"{r:.2f}x" for r in ratios)
            lines.append([case.name, *columns, speed, " / ".join(memory)])
        header = [
            "forward / forward + backward, ms",
            "floor",
            "visionattn",
            "packed",
            "with bias",
            "NATTEN",
            "SDPA, whole map",
        ]
        header += ["NATTEN / visionattn", "peak MiB, visionattn / NATTEN"]
        parts += [f"{_setting(mine[0])}. Medians; NATTEN's is the best of all its tile configurations.", ""]
        parts += [
            markdown(header, lines),
            "",
            *(f"- {line.replace('ours', 'visionattn')}." for line in summary.speedups(table)),
        ]
        parts += [f"- {line}" for line in _first_calls(mine)]
    return "\n".join([*parts, "", *_picture(path)])


def _first_calls(rows: Rows) -> list[str]:
    lines = []
    for row in rows:
        if row["pass"].startswith("first_call") and row["p50_ms"]:
            name = row["pass"].removeprefix("first_call_").replace("_", " + ")
            bias = " with bias" if "bias" in row["implementation"] else ""
            seconds = float(row["p50_ms"]) / 1e3
            lines.append(
                f"First {name}{bias} in a fresh process, nothing compiled before: {seconds:.2f} s; {row['note']}."
            )
    return lines


def _picture(path: Path) -> list[str]:
    picture = path.parent / "figures" / f"{path.stem}.png"
    return [f"![{path.stem}](benchmarks/figures/{picture.name})"] if picture.exists() else []


def models(path: Path) -> str:
    """One machine's results of whole models: setting, table, picture."""
    rows = lineup.grouped(row for row in records.read(path, records.MODEL_COLUMNS) if row["images_per_s"])
    lines: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[column] for column in ("model", "batch", "size", "compiled", "dtype"))
        lines.setdefault(key, {})[row["pass"]] = row

    def cell(row: dict[str, str] | None) -> str:
        if row is None:
            return "-"
        return f"{float(row['images_per_s']):,.0f}" + (
            f" ({float(row['peak_gib']):.1f} GiB)" if row["peak_gib"] else ""
        )

    table = [
        [
            model,
            batch,
            size,
            compiled,
            cell(found.get("training")),
            cell(found.get("inference")),
        ]
        for (model, batch, size, compiled, _), found in lines.items()
    ]
    header = ["model", "batch", "image size", "compiled", "training, images/s (peak)", "inference, images/s (peak)"]
    return "\n".join([f"{_setting(rows[0])}.", "", markdown(header, table), "", *_picture(path)])


def amdahl(folder: Path) -> str:
    """Our whole models beside timm's, eager: the gain, and what Amdahl's law expects of it.

    The law's numbers are those of timm's own model before and after ``fuse``: of a step, the attention's part, and what
    remains of it with our kernels.
    """
    lines = []
    for path in sorted(folder.glob("*_models.csv")):
        shares = path.with_name(path.name.replace("_models", "_fused"))
        if not shares.exists():
            continue
        spans = {row["model"]: row for row in records.read(shares, records.FUSED_COLUMNS) if row["attention_ms"]}
        eager = {row["model"]: row for row in records.read(path, records.MODEL_COLUMNS)
                 if row["compiled"] == "no" and row["pass"] == "training" and row["images_per_s"]}  # fmt: skip
        for ours in (name for name in eager if name.startswith("fused_")):
            theirs = next((name for name in eager if name.startswith(f"timm/{ours.removeprefix('fused_')}")), "")
            before, after = spans.get(theirs), spans.get(theirs.replace("timm/", "fused/"))
            if not (before and after):
                continue
            one = share.Share(float(before["device_ms"]), float(before["attention_ms"]))
            remains = float(after["attention_ms"])
            rates = [float(eager[name]["images_per_s"]) for name in (theirs, ours)]
            gain, expected = rates[1] / rates[0], one.predicted(remains)
            lines.append([f"`{ours}`", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{gain:.2f}x",
                          f"{one.attention_ms:.1f} of {one.all_ms:.1f} ms", f"{remains:.1f} ms", f"{expected:.2f}x",
                          f"{gain / expected:.0%}"])  # fmt: skip
    if not lines:
        return ""
    header = ["eager training", "timm, images/s", "ours", "gain", "attention in timm's step", "in ours",
              "gain that Amdahl's law expects", "reached"]  # fmt: skip
    return markdown(header, lines)


def other_op(path: Path, op: str) -> str:
    """One machine's results of an op other than neighborhoods: setting, table, speed-ups and memory, picture."""
    rows, known = records.read(path, records.KERNEL_RECORDS[op][0]), summary.OPS[op]
    parts: list[str] = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        table = summary.by_case(mine, op, dtype)
        measured = {implementation for cells in table.values() for implementation, _ in cells}
        shown = [implementation for implementation in known.implementations if implementation in measured]
        peer = next(iter(known.peers))
        lines = []
        for case, cells in table.items():
            graphs = [cells.get(("ours", name), {}).get("graph_p50_ms") for name in summary.PASS_NAMES]
            ratios = [summary.ratio(cells, "ours", name, peer) for name in summary.PASS_NAMES]
            graph = " / ".join(f"{float(ms):.3g}" if ms else "-" for ms in graphs)
            speed = " / ".join("-" if r is None else f"{r:.2f}x" for r in ratios)
            lines.append([case.name, *(_pair(cells, i) for i in shown), graph, speed])
        names = [i.replace("ours", "visionattn") for i in shown]
        header = ["forward / forward + backward, ms", *names, "visionattn, as a CUDA graph", f"{peer} / visionattn"]
        said = [*summary.speedups(table, op), *summary.memory(table, op)]
        parts += ["", f"{_setting(mine[0])}. Medians.", "", markdown(header, lines), ""]
        parts += [f"- {line.replace('ours', 'visionattn')}." for line in said]
    return "\n".join([*parts, "", *_picture(path)]).strip()


def op_of(path: Path) -> str | None:
    """The op whose results a file holds; None for another kind of file."""
    if path.stem.endswith("_kernels"):
        return "neighborhood"
    ops = [op for op in summary.OPS if path.stem.endswith(f"_{op}")]
    return max(ops, key=len) if ops else None  # varied_window ends as window does


def other_ops(folder: Path) -> str:
    """All ops' results but the neighborhoods', each to be unfolded."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        op = op_of(path)
        if op not in (None, "neighborhood"):
            found.append(folded(f"{op.replace('_', ' ').capitalize()}", other_op(path, op)))
    return "\n\n".join(found) or "No results are kept here yet: `visionattn benchmark kernels --op ...` measures them."


def folded(title: str, body: str) -> str:
    """Markdown that a reader unfolds."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def headlines(folder: Path) -> str:
    """A line an op and peer: how many times as fast ours is, and the shapes on which it loses."""
    lines = []
    files = [(op, path) for path in sorted(folder.glob("*.csv")) if (op := op_of(path))]
    for op, path in sorted(files, key=lambda file: list(summary.OPS).index(file[0])):
        rows = records.read(path, records.KERNEL_RECORDS[op][0])
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            table = summary.by_case(rows, op, dtype)
            lines += [[op.replace("_", " "), *cells] for cells in _against_peers(table, op)]
    if not lines:
        return "No results are kept here yet: `visionattn benchmark kernels --op ...` measures them."
    header = ["op", "beside", "shapes", "forward", "forward + backward", "loses (forward / forward + backward)"]
    return markdown(header, lines)


def _against_peers(table: summary.Table, op: str) -> list[list[str]]:
    lines = []
    for peer, words in summary.OPS[op].peers.items():
        ratios = {name: {case: r for case, cells in table.items() if (r := summary.ratio(cells, "ours", name, peer))}
                  for name in summary.PASS_NAMES}  # fmt: skip
        if peer in ("floor", "best") or not any(ratios.values()):
            continue
        cells = [f"{summary.geometric_mean(found.values()):.1f}x (least {min(found.values()):.2f}x)" if found else "-"
                 for found in ratios.values()]  # fmt: skip
        forward, both = ratios.values()
        lost = [case for case in table if min(forward.get(case, 2), both.get(case, 2)) < 1]
        said = [f"{case.name}: " + " / ".join(f"{r[case]:.2f}x" if case in r else "-" for r in (forward, both))
                for case in lost]  # fmt: skip
        lines.append([words, str(max(len(forward), len(both))), *cells, "; ".join(said) or "nowhere"])
    return lines


def overviews(folder: Path, which: Mapping[str, str] = OVERVIEWS) -> str:
    """The pictures over all results of a machine, those that there are."""
    found = []
    for name, words in which.items():
        pictures = sorted(folder.glob(f"figures/*_{name}.png"))
        found += [f"![{words}](benchmarks/figures/{path.name})" for path in pictures]
    missing = "No figures are kept here yet: `visionattn benchmark report` draws them." if which is OVERVIEWS else ""
    return "\n\n".join(found) or missing


def simulated(path: Path) -> str:
    """One machine's measured speed-ups beside the simulator's bounds: setting, what they amount to, picture."""
    rows = records.read(path, records.SIMULATOR_COLUMNS)
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        parts += [f"{_setting(mine[0])}; all settings in `benchmarks/{path.name}`:", ""]
        parts += [*(f"- {line}." for line in simulator.summary(mine)), ""]
    return "\n".join([*parts, *_picture(path)])


def _rates(folder: Path) -> dict[str, list[str]]:
    """For each model of ours that was measured at 224x224: images a second in training and in inference."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted(folder.glob("*_models.csv")):
        for row in records.read(path, records.MODEL_COLUMNS):
            if row["images_per_s"] and row["size"] == "224":
                best = found.setdefault(row["model"], {}).get(row["pass"])
                if best is None or float(row["images_per_s"]) > float(best["images_per_s"]):
                    found[row["model"]][row["pass"]] = row
    return {model: [f"{float(rows[name]['images_per_s']):,.0f}" if name in rows else "-"
                    for name in ("training", "inference")] for model, rows in found.items()}  # fmt: skip


def sizes(folder: Path) -> str:
    """The backbones: parameters, multiply-accumulates of one 224x224 image, counted on the meta device, and measured
    throughput."""
    lines, rates = [], _rates(folder)
    for name in timm.list_models(FAMILIES):
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        parameters = sum(p.numel() for p in model.parameters())
        dims = [str(info["num_chs"]) for info in model.feature_info]
        dims = "-".join(dims if len(set(dims)) > 1 else dims[:1])  # a plain transformer's blocks all have the same
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        numbers = [f"{parameters / 1e6:.1f}", f"{counter.get_total_flops() / 2e9:.1f}", dims]
        lines.append(((family != "gna", family, parameters), [f"`{name}`", *numbers, *rates.get(name, ["-", "-"])]))
    header = ["model", "parameters, M", "GMACs at 224x224", "channels of the pyramid", "training, images/s",
              "inference, images/s"]  # fmt: skip
    return markdown(header, [line for _, line in sorted(lines)])  # ours first


def camvid(path: Path) -> str:
    """One machine's segmentation of CamVid: each backbone's accuracy over its seeds, time and memory."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = []
    for config, compiled in dict.fromkeys((row["config"], row["compiled"]) for row in rows):
        mine = [row for row in rows if (row["config"], row["compiled"]) == (config, compiled)]
        found = [float(row["miou"]) for row in mine]
        spread = f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""
        time = statistics.median(float(row["ms_per_iteration"]) for row in mine)
        memory = max(float(row["memory_mib"] or 0) for row in mine) / 1024
        steps = statistics.median(int(row["iterations"]) for row in mine)
        figures = [f"{statistics.fmean(found):.1f}{spread}", f"{steps:.0f}", f"{time:.0f}", f"{memory:.1f}"]
        lines.append([f"`{config}`", compiled, str(len(mine)), *figures])
    header = ["config", "compiled", "seeds", "validation mIoU, %", "iterations", "ms an iteration", "GiB"]
    first = rows[0]
    longest = max(int(row["wall_s"]) for row in rows) / 60
    setting = f"{first['device']}, {first['precision']}, torch {first['torch']}, at most {longest:.1f} minutes each"
    return f"{setting}, from random weights:\n\n{markdown(header, lines)}"


def _all(folder: Path, kind: str, section: Callable[[Path], str], command: str = "") -> str:
    found = [section(path) for path in sorted(folder.glob(f"*_{kind}.csv"))]
    command = command or f"benchmark {kind}"
    return "\n\n".join(found) or f"No results are kept here yet: `visionattn {command}` on a GPU measures them."


PLACES = ("sizes", "headlines", "overviews", "kernels", "ops", "models", "simulator", "camvid", "fused")


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)


def check(text: str) -> None:
    """Raises UserError unless a README's text holds the pair of comments of each table once."""
    for name in PLACES:
        count = len(_place(name).findall(text))
        if count != 1:
            raise UserError(f"the README must hold the pair of comments for {name} once, found {count}")


def fill(text: str, folder: Path) -> str:
    """A README's text with every table renewed.

    Args:
        text: with a pair of comments around each table.
        folder: of the CSV files, and of ``figures/``.

    Raises:
        UserError: where a pair is missing or stands there twice, or a file is of another kind.
    """
    check(text)
    whole = [_all(folder, "models", models), amdahl(folder), overviews(folder, OF_MODELS)]
    whole = "\n\n".join(part for part in whole if part)
    neighborhoods = folded("Neighborhood", _all(folder, "kernels", kernels))
    bodies = (sizes(folder), headlines(folder), overviews(folder), neighborhoods, other_ops(folder), whole,
              _all(folder, "simulator", simulated), _all(folder, "camvid", camvid, "train-seg --results"),
              _all(folder, "fused", fused.section))  # fmt: skip
    for name, body in zip(PLACES, bodies, strict=True):
        text = _place(name).sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text
