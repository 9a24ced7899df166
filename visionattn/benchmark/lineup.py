"""Rows of whole models in the order in which a reader compares them, and which of them are peers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

PEERS = ("timm/", "natten/", "reference/")  # what such names begin with
Row = TypeVar("Row", bound=Mapping[str, str])


def is_peer(model: str) -> bool:
    """Whether a name stands for somebody else's implementation, or for ours without its kernels."""
    return model.startswith(PEERS)


def architecture(model: str) -> str:
    """What a model and its peers have in common: ``swin_tiny`` for all that is a Swin-T."""
    name = model.rpartition("/")[2].removeprefix("fused_")
    return "_".join(name.split("_")[:2])


def grouped(rows: Iterable[Row], by_mode: bool = True) -> list[Row]:
    """Models beside their peers, ours first, a size and, with ``by_mode``, a mode of compilation after another."""
    rows = list(rows)
    order = list(dict.fromkeys(architecture(row["model"]) for row in rows))
    modes = ["no", "default", "reduce-overhead", "max-autotune"]

    def place(row: Row) -> tuple:
        mode = row["compiled"]
        step = modes.index(mode) if by_mode and mode in modes else len(modes)
        return order.index(architecture(row["model"])), int(row["batch"]), int(row["size"]), step, is_peer(row["model"])

    return sorted(rows, key=place)


def fastest(rows: Iterable[Row]) -> list[Row]:
    """Of each model, pass, batch and size the mode with the most images a second."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["images_per_s"]:
            key = tuple(row[name] for name in ("model", "pass", "batch", "size", "dtype"))
            if key not in best or float(row["images_per_s"]) > float(best[key]["images_per_s"]):
                best[key] = row
    return list(best.values())


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels of ``values``, in their order, as near as it goes but at least ``gap`` apart."""
    places: dict[int, float] = {}
    last = None
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        places[i] = last = values[i] if last is None else max(values[i], last + gap)
    return [places[i] for i in range(len(values))]
