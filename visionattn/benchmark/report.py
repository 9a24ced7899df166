"""``visionattn benchmark report``: every figure and table from the CSV files, in one go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from visionattn.training.errors import UserError
from visionattn.visualize import gallery
from visionattn.visualize.style import THEMES

from . import figures, plot, readme, records, summary


def machines(folder: Path) -> list[figures.Machine]:
    """What the CSV files of a folder hold, machine by machine.

    Raises:
        UserError: where there are none, or one cannot be read.
    """
    ops: dict[str, dict[str, summary.Table]] = {}
    models: dict[str, figures.Rows] = {}
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*.csv")):
        op, kind = readme.op_of(path), path.stem.rpartition("_")[2]
        if op is None and kind != "models":
            continue
        columns = records.MODEL_COLUMNS if op is None else records.KERNEL_RECORDS[op][0]
        rows = records.read(path, columns)
        if not rows:
            continue
        ending = "kernels" if op == "neighborhood" else op or "models"
        stem = path.stem.removesuffix(f"_{ending}")
        dtype = rows[0]["dtype"]  # a picture mixes none: that of the first line
        names.setdefault(stem, f"{rows[0]['gpu']}, {dtype}, torch {rows[0]['torch']}")
        if op is None:
            models[stem] = [row for row in rows if row["dtype"] == dtype]
        else:
            ops.setdefault(stem, {})[op] = summary.by_case(rows, op, dtype)
    if not names:
        raise UserError(f"{folder} holds no results: visionattn benchmark kernels or models measures some")
    order = list(summary.OPS)
    return [
        figures.Machine(stem, gpu, dict(sorted(ops.get(stem, {}).items(), key=lambda item: order.index(item[0]))),
                        models.get(stem, []))
        for stem, gpu in names.items()
    ]  # fmt: skip


def write(path: Path, text: str) -> None:
    """Writes a text whole or not at all; UserError where it cannot be."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def run(folder: Path, page: Path | None, say: Callable[[str], None]) -> None:
    """Draws every figure into ``folder/figures`` and fills the tables of a README.

    Args:
        folder: of the CSV files.
        page: the README; None to draw only.
        say: gets a line a figure, also for each that there are no results for.

    Raises:
        UserError: where there are no results, or something cannot be read or written.
    """
    if page is not None and not page.is_file():
        raise UserError(f"--readme {page}: no such file")
    if page is not None:
        readme.check(page.read_text(encoding="utf-8"))  # before all else, which takes a while
    found = machines(folder)
    target = folder / "figures"
    for path in sorted(folder.glob("*.csv")):
        if path.stem.endswith(records.UNDRAWN):
            continue
        try:
            say(f"drawn: {plot.draw(path, target)}")
        except UserError as error:  # another kind of file, or one without times
            say(f"not drawn: {path.name}: {error}")
    for machine in found:
        for name, draw in figures.FIGURES.items():
            picture = target / f"{machine.stem}_{name}.png"
            try:
                draw(machine, picture)
                say(f"drawn: {picture}")
            except figures.Nothing as nothing:
                picture.unlink(missing_ok=True)  # of earlier results
                say(f"not drawn: {picture.name}: {nothing}")
    for name, theme in THEMES.items():  # what is measured there, explained
        picture = target / f"patterns_{name}.png"
        gallery.draw_zoo(picture, theme)
        say(f"drawn: {picture}")
    if page is not None:
        write(page, readme.fill(page.read_text(encoding="utf-8"), folder))
        say(f"filled: {page}")
