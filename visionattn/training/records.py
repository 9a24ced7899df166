"""CSV files of results: a line a measurement, with what it was made with; written whole after every change."""

import csv
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import visionattn

from .errors import UserError

# What was measured, where, and with what: the same for every kind of record.
ORIGIN = ("gpu", "torch", "triton", "natten", "timm", "visionattn", "revision")


def machine_name(device: torch.device) -> str:
    """The device's name as hardware vendors write it: ``NVIDIA H200``, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


def revision() -> str:
    """The git revision of the code that is measured, ``+`` at its end where the tree has changes; empty without git."""
    here = Path(visionattn.__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package inside somebody else's repository has no revision of its own.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", here.parent) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def origin(device: torch.device, code_revision: str | None = None) -> dict[str, str]:
    """The columns ``ORIGIN`` for measurements made in this process."""

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""

    return dict(
        gpu=machine_name(device),
        torch=torch.__version__,
        triton=version("triton"),
        natten=version("natten"),
        timm=version("timm"),
        visionattn=visionattn.__version__,
        revision=revision() if code_revision is None else code_revision,
    )


class Records:
    """The lines of one CSV file; a new measurement replaces the older one with the same key."""

    def __init__(self, path: Path, columns: tuple[str, ...], key: tuple[str, ...]):
        self.path, self.columns, self.key = path, columns, key
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            for row in read(path, columns):
                self.rows[self._key(row)] = row

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[column] for column in self.key)

    def add(self, **values: object) -> dict[str, str]:
        """Adds one line; columns that are not named, or None, stay empty. Returns it as it is written."""
        unknown = set(values) - set(self.columns)
        if unknown:
            raise KeyError(f"no such column: {sorted(unknown)}; there are {self.columns}")
        row = {column: _text(values.get(column)) for column in self.columns}
        self.rows.pop(self._key(row), None)
        self.rows[self._key(row)] = row
        return row

    def write(self) -> None:
        """Writes all lines, to a temporary file that then takes the name, so that a reader never sees half a file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(self.path.name + ".tmp")
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows.values())
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None


def read(path: Path, columns: tuple[str, ...] | None = None) -> list[dict[str, str]]:
    """The lines of a CSV file; raises UserError where it is missing or its columns are not ``columns``."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if columns is not None and tuple(reader.fieldnames or ()) != columns:
        raise UserError(f"{path} is another kind of file: its columns are {reader.fieldnames}, not {list(columns)}")
    return rows


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else str(round(value))
    return str(value)
