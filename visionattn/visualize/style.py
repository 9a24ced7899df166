"""What all pictures have in common: colours on light and dark pages, saving."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib

from visionattn.training.errors import UserError

QUERIES = ("#2f7ed8", "#e8711a")  # blue and orange: apart for colour-blind eyes, and on white and near-black


class Theme(NamedTuple):
    """Colours of a page."""

    page: str
    ink: str
    faint: str  # second lines
    grid: str


LIGHT = Theme("#ffffff", "#1f2328", "#59636e", "#d8dee4")
DARK = Theme("#0d1117", "#f0f6fc", "#9198a1", "#2b323b")
THEMES = {"light": LIGHT, "dark": DARK}


def pyplot():
    """matplotlib's pyplot, which never opens a window."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure, target: Path, dpi: int = 110) -> None:
    """Writes a PNG, whole or not at all, the same bytes for the same picture; closes the figure.

    Raises:
        UserError: where it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        figure.savefig(temporary, dpi=dpi, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        pyplot().close(figure)

