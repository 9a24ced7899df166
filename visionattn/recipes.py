"""The recipes of ``configs/``, which travel inside the package: where a tool's ``--config`` is looked for.

``visionattn/configs`` is a link to ``configs/`` in a checkout and a folder in a wheel, so that both are found one way.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "configs"


def locate(path: str | Path) -> Path:
    """The file that ``path`` names: itself where it exists, else the recipe of that name that came with the package.

    ``shapes/gna_nano.yaml`` and ``configs/shapes/gna_nano.yaml`` name the same recipe. What is neither a file nor a
    recipe is returned as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    inside = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    return FOLDER / inside if (FOLDER / inside).is_file() else path


def names(suffix: str = ".yaml") -> list[str]:
    """The recipes that came with the package, as :func:`locate` takes them; those of files that end in ``suffix``."""
    found = (path.relative_to(FOLDER).as_posix() for path in FOLDER.glob(f"*/**/*{suffix}"))
    return sorted(name for name in found if not Path(name).name.startswith("_") and "_base_" not in name)
