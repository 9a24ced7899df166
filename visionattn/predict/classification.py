"""Classifiers: the most probable classes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from visionattn.training.config import DataConfig
from visionattn.training.errors import UserError, first_line
from visionattn.training.trained import Running, Trained
from visionattn.training.transforms import ToInput, eval_transform

from . import drawing
from .pictures import Named


@dataclass(frozen=True)
class Classes:
    """The answer of a classifier.

    Attributes:
        name: of the picture.
        top: (number, name, title for people, probability) of the most probable classes, the best first.
        truth: the picture's class where its folder has the name of one.
        model: what the model is called in a picture.
    """

    name: str
    top: list[tuple[int, str, str, float]]
    truth: str | None
    model: str

    @property
    def right(self) -> bool | None:
        """Whether the first choice is the picture's class; None where that is not known."""
        return None if self.truth is None else self.top[0][1] == self.truth

    def record(self) -> dict[str, Any]:
        top = [
            {"class": name, "index": index, "probability": round(p, 6)} | ({"title": title} if title != name else {})
            for index, name, title, p in self.top
        ]
        return {"top": top} | ({} if self.truth is None else {"true_class": self.truth, "correct": self.right})

    def summary(self) -> str:
        return ", ".join(f"{title} {100 * p:.1f} %" for _, _, title, p in self.top[:3])

    def draw(self, image: Image.Image) -> Image.Image:
        bars = []
        for i, (_, name, title, p) in enumerate(self.top):
            colour = drawing.BLUE if i == 0 else drawing.PALE
            if self.truth is not None and (name == self.truth or i == 0):
                colour = drawing.GREEN if name == self.truth else drawing.RED
            bars.append(drawing.Bar(title, p, colour))
        true = "" if self.truth is None else f" (true class: {self.truth})"
        return drawing.beside(image, bars, f"{self.name}{true}", f"{self.model}, {image.width}x{image.height} pixels")

    def tile(self, image: Image.Image) -> drawing.Tile:
        _, _, title, p = self.top[0]
        frame = None if self.right is None else drawing.GREEN if self.right else drawing.RED
        lines = [f"{title} {100 * p:.0f} %", self.name if self.right is not False else f"true: {self.truth}"]
        return drawing.tile(image, lines, frame)


class Classifier:
    """The predictor of a trained classifier.

    Args:
        trained: the model.
        data: how pictures become its input.
        running: where and how to compute.
        top: how many classes an answer has.
    """

    kind = "classification"

    def __init__(self, trained: Trained, data: DataConfig, running: Running, top: int):
        self.trained, self.data, self.running = trained, data, running
        self.top = min(top, len(trained.classes))
        self.transform, self.to_input = eval_transform(data), ToInput(data, running.device)
        self.network = trained.model.to(running.device)
        self.known = set(trained.classes) if trained.certain else set()
        self.about: dict[str, Any] = dict(
            source=trained.origin.source, model=trained.name, weights=trained.origin.weights,
            classes=len(trained.classes), image_size=data.image_size)  # fmt: skip

    @torch.inference_mode()
    def __call__(self, names: Sequence[Named], images: Sequence[Image.Image]) -> list[Classes]:
        pixels = torch.stack([self.transform(image) for image in images]).to(self.running.device)
        try:
            with self.running.autocast:
                logits = self.network(self.to_input(pixels)).float()
        except (AssertionError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            size = self.data.image_size
            raise UserError(f"{self.trained.origin.source} refuses images of {size}x{size} pixels: {reason}") from None
        probabilities, indices = logits.softmax(1).topk(self.top)
        label = f"{self.trained.name}, {self.trained.origin.weights} weights"
        answers = []
        for named, row, numbers in zip(names, probabilities.tolist(), indices.tolist()):
            top = [(i, self.trained.classes[i], self.trained.title(i), p) for i, p in zip(numbers, row)]
            folder = named.path.parent.name
            answers.append(Classes(named.label, top, folder if folder in self.known else None, label))
        return answers
