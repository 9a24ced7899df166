"""Which class of a model a picture's class is, and the real labels of ImageNet's validation images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from visionattn.training.errors import UserError
from visionattn.training.trained import Trained


def matching(trained: Trained, names: Sequence[str]) -> Tensor:
    """The model's class of each class of the data, int64 ``[classes of the data]``.

    Classes are the same where their names are. Names that are numbers ("0", "1", ...; shards have no others) and names
    that are only a guess match by number if there are equally many.

    Raises:
        UserError: where the classes are others than the model's.
    """
    own = {name: i for i, name in enumerate(trained.classes)}
    if all(name in own for name in names):
        return torch.tensor([own[name] for name in names])
    unnamed = not trained.certain or list(names) == [str(i) for i in range(len(names))]
    if unnamed and len(names) == len(own):
        return torch.arange(len(names))
    foreign = [name for name in names if name not in own]
    raise UserError(
        f"{trained.origin.source} knows {len(own)} classes ({_some(trained.classes)}), "
        f"but the data has {len(names)}, of which it lacks {len(foreign)} ({_some(foreign)})"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")


class RealLabels:
    """All classes that each picture shows, as people saw them (Beyer et al., "Are we done with ImageNet?").

    A picture without any real label counts for nothing.

    Args:
        path: JSON file: a list of lists of classes, number n for ``ILSVRC2012_val_{n + 1:08d}``, or a mapping from
            names of files (with or without folders) to such lists; a class is its number or its name.

    Raises:
        UserError: where the file is missing or holds something else.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"real_labels: {path} cannot be read: {error}") from None
        labels = found.values() if isinstance(found, dict) else found
        if not isinstance(found, dict | list) or not all(isinstance(one, list) for one in labels):
            raise UserError(f"real_labels: {path} must hold a list of lists of classes, or such lists by file name")
        self.numbered = isinstance(found, list)
        self.labels = found

    def of(self, name: str, number: Callable[[int | str], int]) -> list[int]:
        """The model's classes of a picture.

        Args:
            name: of its file.
            number: a class, by number or name -> the model's class.

        Raises:
            UserError: where the file of labels does not know the picture.
        """
        base = os.path.basename(name)
        if self.numbered:
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", os.path.splitext(base)[0])
            if match is None or not 1 <= int(match[1]) <= len(self.labels):
                raise UserError(
                    f"real_labels: {self.path} lists labels for ILSVRC2012_val_00000001 to {len(self.labels):08d}, "
                    f"but there is an image {base}"
                )
            return [number(one) for one in self.labels[int(match[1]) - 1]]
        known = next((key for key in (name, base) if key in self.labels), None)
        if known is None:
            raise UserError(f"real_labels: {self.path} has no labels for {base}")
        return [number(one) for one in self.labels[known]]


def numbers(trained: Trained, path: str) -> Callable[[int | str], int]:
    """For :meth:`RealLabels.of`: a class by number or name -> the model's class, UserError for another."""
    own = {name: i for i, name in enumerate(trained.classes)}

    def number(one: int | str) -> int:
        found = own.get(one) if isinstance(one, str) else one
        if not isinstance(found, int) or not 0 <= found < len(own):
            raise UserError(f"real_labels: {path} names the class {one!r}, which {trained.origin.source} does not know")
        return found

    return number
