"""What the kernel results amount to: a compact table, and speed-ups over the op's peer in a line."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import NamedTuple

from .cases import (
    BIFORMER,
    BIFORMER_512,
    CLASSIFIER,
    DAVIT,
    DAVIT_512,
    GROUPS,
    H1,
    HALONET50TS,
    INLINE,
    SWIN,
    VSA,
    VSA_512,
    AnyCase,
    Case,
    ChannelCase,
    HaloCase,
    LinearCase,
    RoutingCase,
    VariedCase,
    WindowCase,
)
from .depthwise_cases import DEPTHWISE, DEPTHWISE_512, DepthwiseCase

TIMMS = {"timm": "timm's path", "timm compiled": "timm's path compiled", "floor": "the floor"}
SAMPLES = {
    "grid_sample": "grid_sample and attention",
    "grid_sample compiled": "grid_sample and attention compiled",
    "grid_sample sdpa": "grid_sample and SDPA",
    "grid_sample sdpa compiled": "grid_sample and SDPA compiled",
}
GATHERS = {
    "gather": "gathering",
    "gather compiled": "gathering compiled",
    "select": "selecting with SDPA",
    "select compiled": "selecting with SDPA compiled",
    "floor": "the floor",
}
FORMS = {
    name + suffix: words + suffix
    for name, words in {
        "timm": "timm's path",
        "sdpa": "SDPA",
        "tokens first": "products of [N, D] matrices",
        "channels first": "products of [D, N] matrices",
    }.items()
    for suffix in ("", " compiled")
}
PASS_NAMES = {"forward": "fwd", "forward_backward": "fwd+bwd"}


class Op(NamedTuple):
    """How an op's results are read."""

    case: type[AnyCase]
    implementations: tuple[str, ...]  # in the table's order
    mine: tuple[str, ...]  # those of ours that are set against the peers
    peers: dict[str, str]  # what they are called in a sentence; the first one also gets a column
    head: tuple[AnyCase, ...]  # the rows of the geometric mean
    rivals: tuple[str, ...] = ()  # of which the fastest one is a peer by the name of "best", case by case


OPS = {
    "neighborhood": Op(
        Case,
        ("floor", "ours", "ours packed", "ours bias", "ours packed bias", "natten", "sdpa"),
        ("ours", "ours packed"),
        {"natten": "NATTEN's best"},
        CLASSIFIER,
    ),
    "window": Op(
        WindowCase,
        ("floor", "ours", "ours plain", "timm", "timm compiled"),
        ("ours",),
        TIMMS,
        SWIN,
    ),
    "halo": Op(
        HaloCase,
        ("floor", "ours", "timm", "timm compiled"),
        ("ours",),
        TIMMS,
        HALONET50TS + H1,
    ),
    "routing": Op(
        RoutingCase,
        ("floor", "ours", "gather", "gather compiled", "select", "select compiled"),
        ("ours",),
        GATHERS,
        BIFORMER + BIFORMER_512,
    ),
    "channel": Op(
        ChannelCase,
        ("floor", "ours", "best", *FORMS),
        ("ours",),
        {"best": "the fastest other form", **FORMS, "floor": "the floor"},
        DAVIT + DAVIT_512,
        tuple(FORMS),
    ),
    "varied_window": Op(
        VariedCase,
        ("floor", "ours", *SAMPLES),
        ("ours",),
        SAMPLES | {"floor": "the floor"},
        VSA + VSA_512,
    ),
    "linear": Op(
        LinearCase,
        ("floor", "ours", "ours plain", "eager", "eager compiled", "eager plain"),
        ("ours",),
        {"eager": "eager PyTorch", "eager compiled": "eager PyTorch compiled", "floor": "the floor"},
        INLINE,
    ),
    "depthwise": Op(
        DepthwiseCase,
        ("floor", "ours", "conv2d", "conv2d compiled"),
        ("ours",),
        {"conv2d": "torch's conv2d", "conv2d compiled": "torch's conv2d compiled", "floor": "the floor"},
        DEPTHWISE + DEPTHWISE_512,
    ),
}

Table = dict[AnyCase, dict[tuple[str, str], Mapping[str, str]]]


def by_case(rows: Iterable[Mapping[str, str]], op: str = "neighborhood", dtype: str | None = None) -> Table:
    """The lines of one op (and dtype), by case in the order of ``cases``, and then by (implementation, pass)."""
    table: Table = {}
    case = OPS[op].case
    for row in rows:
        if row["op"] == op and dtype in (None, row["dtype"]):
            numbers = {field.name: int(row[field.name]) for field in fields(case)}
            table.setdefault(case(**numbers), {})[row["implementation"], row["pass"]] = row
    for cells in table.values():
        for name in PASS_NAMES:
            measured = [i for i in OPS[op].rivals if median_ms(cells, i, name)]
            if measured:
                cells["best", name] = cells[min(measured, key=lambda i: median_ms(cells, i, name)), name]
    known = [row for row in GROUPS[op]["all"] if row in table]
    return {row: table[row] for row in dict.fromkeys([*known, *table])}


def median_ms(cells: Mapping[tuple[str, str], Mapping[str, str]], implementation: str, name: str) -> float | None:
    """The median of one measurement in milliseconds; None where there is none."""
    text = cells.get((implementation, name), {}).get("p50_ms", "")
    return float(text) if text else None


def render(table: Table, op: str = "neighborhood") -> str:
    """Median milliseconds, forward / forward+backward, a row a case and a column an implementation."""
    peer = next(iter(OPS[op].peers))
    implementations = OPS[op].implementations
    shown = [i for i in implementations if any((i, p) in cells for cells in table.values() for p in PASS_NAMES)]
    lines = [["ms, fwd / fwd+bwd", *shown, f"{peer} / ours"]]
    for case, cells in table.items():
        pairs = {i: [median_ms(cells, i, p) for p in PASS_NAMES] for i in shown}
        line = [case.name]
        line += [" / ".join("-" if ms is None else f"{ms:.3g}" for ms in pair) for pair in pairs.values()]
        ratios = [ratio(cells, "ours", p, peer) for p in PASS_NAMES]
        line.append(" / ".join("-" if r is None else f"{r:.2f}x" for r in ratios))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def ratio(
    cells: Mapping[tuple[str, str], Mapping[str, str]], implementation: str, name: str, peer: str = "natten"
) -> float | None:
    """How many times as long the peer takes; None unless both were measured."""
    mine, theirs = median_ms(cells, implementation, name), median_ms(cells, peer, name)
    return theirs / mine if mine and theirs else None


def memory(table: Table, op: str) -> list[str]:
    """One line a peer whose memory was measured: how much of its peak ours takes, forward and backward."""
    lines = []
    for peer, words in OPS[op].peers.items():
        shares = {}
        for case, cells in table.items():
            ours, theirs = (cells.get((i, "forward_backward"), {}).get("peak_mib") for i in ("ours", peer))
            if ours and theirs and float(theirs):
                shares[case] = float(ours) / float(theirs)
        if shares:
            most = max(shares, key=lambda case: shares[case])
            lines.append(f"ours, fwd+bwd: at most {shares[most]:.2f}x the peak memory of {words} ({most.name})")
    return lines


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers, at least one."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def speedups(table: Table, op: str = "neighborhood") -> list[str]:
    """One line a peer, pass and input form: the geometric mean over the op's head rows, and the slowest row of all."""
    lines = []
    rows = "B128 rows" if all(case.batch == 128 for case in OPS[op].head) else "rows"
    for peer, words in OPS[op].peers.items():
        for implementation in OPS[op].mine:
            for name, short in PASS_NAMES.items():
                ratios = {case: r for case, cells in table.items() if (r := ratio(cells, implementation, name, peer))}
                if not ratios:
                    continue
                head = [ratios[case] for case in OPS[op].head if case in ratios]
                slowest = min(ratios, key=lambda case: ratios[case])
                mean = "-"
                if head:
                    mean = f"{geometric_mean(head):.2f}x (least {min(head):.2f}x)"
                lines.append(
                    f"{implementation}, {short}: {mean} as fast as {words} (geometric mean of {len(head)} of "
                    f"{len(OPS[op].head)} {rows}); "
                    f"slowest row {ratios[slowest]:.2f}x ({slowest.name})"
                )
    first = next(iter(OPS[op].peers.values())).removesuffix("'s best")
    return lines or [f"no speed-up over {first}: it was not measured"]
