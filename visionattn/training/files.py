"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


def require_free(path: Path, option: str, overwrite: bool = False) -> None:
    """Raises UserError where ``path`` is taken (unless it may be replaced) or cannot be made."""
    if path.exists() and not overwrite:
        raise UserError(f"{option}: {path} is there already; --overwrite replaces it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written: {above} is no folder that may be written to")


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file or folder to; it takes the name ``path`` where the block ends well.

    Where it does not, nothing is left behind, and what had the name before stays.

    Raises:
        UserError: where it cannot be written, on a full disk for example.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.rename(path, old)  # a folder that holds something is not replaced in one step
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()
