"""Writes the README's tables from what was measured: ``python benchmarks/fill_readme.py``.

The kernels' and models' figures come from the CSV files beside this script, the size of each model from the model
itself; each table replaces what stands between its pair of comments in the README.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401  registers our models with timm
from visionattn.benchmark import fused, records, simulator, summary

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"

Rows = Sequence[dict[str, str]]


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
    picture = HERE / "figures" / f"{path.stem}.png"
    return [f"![{path.stem}](benchmarks/figures/{picture.name})"] if picture.exists() else []


def models(path: Path) -> str:
    """One machine's results of whole models: setting, table, picture."""
    rows = [row for row in records.read(path, records.MODEL_COLUMNS) if row["images_per_s"]]
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


def other_op(path: Path, op: str) -> str:
    """One machine's results of an op other than neighborhoods: setting, table, speed-ups and memory, picture."""
    rows, known = records.read(path, records.KERNEL_RECORDS[op][0]), summary.OPS[op]
    parts = [f"#### {op.replace('_', ' ').capitalize()}"]
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
    return "\n".join([*parts, "", *_picture(path)]).rstrip()


def other_ops() -> str:
    """All ops' results but the neighborhoods'."""
    found = []
    for path in sorted(HERE.glob("*.csv")):
        ops = [op for op in summary.OPS if path.stem.endswith(f"_{op}")]
        if ops:
            found.append(other_op(path, max(ops, key=len)))  # varied_window ends as window does
    return "\n\n".join(found) or "No results are kept here yet: `visionattn benchmark kernels --op ...` measures them."


def simulated(path: Path) -> str:
    """One machine's measured speed-ups beside the simulator's bounds: setting, what they amount to, picture."""
    rows = records.read(path, records.SIMULATOR_COLUMNS)
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        parts += [f"{_setting(mine[0])}; all settings in `benchmarks/{path.name}`:", ""]
        parts += [*(f"- {line}." for line in simulator.summary(mine)), ""]
    return "\n".join([*parts, *_picture(path)])


def sizes() -> str:
    """The backbones: parameters, and multiply-accumulates of one 224x224 image, counted on the meta device."""
    lines = []
    for name in timm.list_models(["gna_*", "nat_*", "dinat_*", "fused_*", "biformer_*", "inline_*", "vsa_*"]):
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        parameters = sum(p.numel() for p in model.parameters())
        dims = [str(info["num_chs"]) for info in model.feature_info]
        dims = "-".join(dims if len(set(dims)) > 1 else dims[:1])  # a plain transformer's blocks all have the same
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        lines.append(
            (
                (family != "gna", family, parameters),
                [f"`{name}`", f"{parameters / 1e6:.1f}", f"{counter.get_total_flops() / 2e9:.1f}", dims],
            )
        )
    header = ["model", "parameters, M", "GMACs at 224x224", "channels of the pyramid"]
    return markdown(header, [line for _, line in sorted(lines)])  # ours first


def _all(kind: str, section) -> str:
    found = [section(path) for path in sorted(HERE.glob(f"*_{kind}.csv"))]
    return "\n\n".join(found) or f"No results are kept here yet: `visionattn benchmark {kind}` on a GPU measures them."


def fill(text: str) -> str:
    """The README's text with every table renewed."""
    tables = dict(sizes=sizes(), kernels=_all("kernels", kernels), models=_all("models", models))
    tables["fused"] = _all("fused", fused.section)
    for name, body in (tables | dict(ops=other_ops(), simulator=_all("simulator", simulated))).items():
        pattern = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{README} must hold the pair of comments for {name} once, found {count}")
    return text


if __name__ == "__main__":
    filled = fill(README.read_text())
    temporary = README.with_suffix(".tmp")
    temporary.write_text(filled)
    temporary.replace(README)
