"""Writes the README's tables from the results beside this script: ``python benchmarks/fill_readme.py``.

``visionattn benchmark report`` draws the pictures too.
"""

from pathlib import Path

from visionattn.benchmark import readme
from visionattn.benchmark.report import write

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def fill(text: str) -> str:
    """The README's text with every table renewed."""
    return readme.fill(text, HERE)


if __name__ == "__main__":
    write(README, fill(README.read_text()))
