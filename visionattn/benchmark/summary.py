"""What the kernel results amount to: a compact table, and speed-ups over NATTEN in a line."""

import math
from collections.abc import Iterable, Mapping

from .cases import CLASSIFIER, GROUPS, Case

PASS_NAMES = {"forward": "fwd", "forward_backward": "fwd+bwd"}
IMPLEMENTATIONS = ("floor", "ours", "ours packed", "ours bias", "ours packed bias", "natten", "sdpa")

Table = dict[Case, dict[tuple[str, str], Mapping[str, str]]]


def by_case(rows: Iterable[Mapping[str, str]], op: str = "neighborhood", dtype: str | None = None) -> Table:
    """The lines of one op (and dtype), by case in the order of ``cases``, and then by (implementation, pass)."""
    table: Table = {}
    for row in rows:
        if row["op"] == op and dtype in (None, row["dtype"]):
            numbers = (row[key] for key in ("batch", "height", "width", "heads", "dim", "kernel", "dilation", "stride"))
            table.setdefault(Case(*map(int, numbers)), {})[row["implementation"], row["pass"]] = row
    known = [case for case in GROUPS["all"] if case in table]
    return {case: table[case] for case in dict.fromkeys([*known, *table])}


def median_ms(cells: Mapping[tuple[str, str], Mapping[str, str]], implementation: str, name: str) -> float | None:
    """The median of one measurement in milliseconds; None where there is none."""
    text = cells.get((implementation, name), {}).get("p50_ms", "")
    return float(text) if text else None


def render(table: Table) -> str:
    """Median milliseconds, forward / forward+backward, a row a case and a column an implementation."""
    shown = [i for i in IMPLEMENTATIONS if any((i, p) in cells for cells in table.values() for p in PASS_NAMES)]
    lines = [["ms, fwd / fwd+bwd", *shown, "natten / ours"]]
    for case, cells in table.items():
        pairs = {i: [median_ms(cells, i, p) for p in PASS_NAMES] for i in shown}
        line = [case.name]
        line += [" / ".join("-" if ms is None else f"{ms:.3g}" for ms in pair) for pair in pairs.values()]
        ratios = [ratio(cells, "ours", p) for p in PASS_NAMES]
        line.append(" / ".join("-" if r is None else f"{r:.2f}x" for r in ratios))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def ratio(cells: Mapping[tuple[str, str], Mapping[str, str]], implementation: str, name: str) -> float | None:
    """How many times as long NATTEN takes; None unless both were measured."""
    mine, theirs = median_ms(cells, implementation, name), median_ms(cells, "natten", name)
    return theirs / mine if mine and theirs else None


def speedups(table: Table) -> list[str]:
    """One line a pass and input form: the geometric mean over the classifier's rows, and the slowest row of all."""
    lines = []
    for implementation in ("ours", "ours packed"):
        for name, short in PASS_NAMES.items():
            ratios = {case: r for case, cells in table.items() if (r := ratio(cells, implementation, name))}
            if not ratios:
                continue
            head = [ratios[case] for case in CLASSIFIER if case in ratios]
            slowest = min(ratios, key=lambda case: ratios[case])
            mean = f"{math.exp(sum(map(math.log, head)) / len(head)):.2f}x (least {min(head):.2f}x)" if head else "-"
            lines.append(
                f"{implementation}, {short}: {mean} as fast as NATTEN's best (geometric mean of {len(head)} of "
                f"{len(CLASSIFIER)} B128 rows); "
                f"slowest row {ratios[slowest]:.2f}x ({slowest.name})"
            )
    return lines or ["no speed-up over NATTEN: it was not measured"]
