"""Which predictor a model takes, by what its checkpoint says of itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from visionattn.training.trained import Choice, Running, load, locate

from .predictor import Predictor


@dataclass(frozen=True)
class Asked:
    """What a user asks of a predictor.

    Attributes:
        top: classes in a classifier's answer.
        size: height and width of the network's input; the model's own if None.
        crop_pct: part of the short side that is kept; the model's own if None.
        threshold: score from which a detection counts.
    """

    top: int = 5
    size: int | None = None
    crop_pct: float | None = None
    threshold: float = 0.5


def make(source: str, choice: Choice, asked: Asked, running: Running) -> Predictor:
    """The predictor of the model that a user names.

    Raises:
        UserError: where there is no such model, or it cannot be read.
    """
    from .classification import Classifier

    trained = load(locate(source, choice), choice)
    data = trained.data
    if asked.size is not None:
        data = dataclasses.replace(data, image_size=asked.size)
    if asked.crop_pct is not None:
        data = dataclasses.replace(data, crop_pct=asked.crop_pct)
    return Classifier(trained, data, running, asked.top)
