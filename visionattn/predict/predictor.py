"""What the command needs to know of a kind of model: classifier, segmenter or detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from .drawing import Tile
from .pictures import Named


class Answer(Protocol):
    """What a model says of one picture."""

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""

    def summary(self) -> str:
        """In a few words, for a line of text."""

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture with the answer drawn into it or beside it."""

    def tile(self, image: Image.Image) -> Tile:
        """The picture with the answer, small."""


class Predictor(Protocol):
    """A model that answers.

    Attributes:
        kind: "classification", "segmentation" or "detection".
        about: the model as plain values, for JSON.
    """

    kind: str
    about: dict[str, Any]

    def __call__(self, names: Sequence[Named], images: Sequence[Image.Image]) -> list[Answer]:
        """One answer a picture."""
