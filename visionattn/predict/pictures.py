"""Which pictures a user names: files, folders and lists of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from visionattn.training.errors import Unreadable, UserError
from visionattn.training.sources import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")
LISTS = (".txt", ".lst")


@dataclass(frozen=True)
class Named:
    """A picture's file.

    Attributes:
        path: where it is.
        label: its path below the folder that the user named, else its file name; unique.
    """

    path: Path
    label: str


def collect(sources: Sequence[str]) -> list[Named]:
    """All pictures of files, folders (and the folders in them) and lists, in order, each once.

    A list is a text file (.txt or .lst) with a path a line; paths that are not absolute start at the list's folder.
    Empty lines and those that begin with # are passed over.

    Raises:
        UserError: for what does not exist, and for folders and lists without any picture.
    """
    found: dict[Path, str] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise UserError(f"{source} holds no images ({', '.join(SUFFIXES)})")
            named = [(file, str(file.relative_to(path))) for file in files]
        elif not path.is_file():
            raise UserError(f"{source} does not exist; name an image, a folder or a list (.txt)")
        elif path.suffix.lower() in LISTS:
            named = [(file, file.name) for file in _listed(path)]
        else:
            named = [(path, path.name)]
        for file, label in named:
            found.setdefault(file, label)
    taken: dict[str, int] = {}
    unique = []
    for path, label in found.items():
        taken[label] = taken.get(label, 0) + 1
        number = taken[label]
        name = Path(label)
        unique.append(Named(path, label if number == 1 else str(name.with_name(f"{name.stem}-{number}{name.suffix}"))))
    return unique


def _listed(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read: {error}") from None
    count = 0
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        file = path.parent / name
        if not file.is_file():
            raise UserError(f"list {path}, line {number}: {name} does not exist")
        count += 1
        yield file
    if not count:
        raise UserError(f"list {path} names no images")


def read(picture: Named) -> Image.Image:
    """The RGB picture.

    Raises:
        Unreadable: naming the file, where it is damaged or no picture.
    """
    try:
        file = picture.path.open("rb")
    except OSError as error:
        raise Unreadable(f"cannot read image {picture.path}: {error.strerror or error}") from None
    return decode(file, str(picture.path))
