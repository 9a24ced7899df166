"""``visionattn curves``: draws the curves of a run, finished or still running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import logs


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 where a folder holds no run."""
    parser = argparse.ArgumentParser(prog="visionattn curves", description="Draw the curves of runs into curves.png.")
    parser.add_argument("run", nargs="+", type=Path, help="a run's folder, which may still be written to")
    code = 0
    for folder in parser.parse_args(sys.argv[1:] if argv is None else list(argv)).run:
        drawn = logs.draw_curves(folder) if (folder / "steps.csv").is_file() else None
        if drawn is None:
            print(f"visionattn curves: error: {folder} holds no run with a logged step (steps.csv)", file=sys.stderr)
            code = 2
        else:
            print(f"drawn: {drawn}")
    return code
