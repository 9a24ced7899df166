"""Which predictor a model takes, by what its checkpoint says of itself."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from visionattn.training.errors import UserError
from visionattn.training.trained import Choice, Running, load, locate

from .predictor import Predictor

CHECKPOINT = re.compile(r"(best_\w+_)?iter_(\d+)\.pth")


@dataclass(frozen=True)
class Asked:
    """What a user asks of a predictor.

    Attributes:
        top: classes in a classifier's answer.
        size: of the network's input: height and width, a detector's short side; the model's own if None.
        crop_pct: part of the short side that a classifier sees; the model's own if None.
        threshold: score from which a detection counts.
    """

    top: int = 5
    size: int | None = None
    crop_pct: float | None = None
    threshold: float = 0.5


def checkpoint_of(source: str) -> Path | None:
    """The checkpoint of a segmentor that a user means: a file such as iter_100.pth, or the last of a run folder."""
    path = Path(source)
    if path.is_dir():
        found = {int(match[2]): file for file in path.iterdir() if (match := CHECKPOINT.fullmatch(file.name))}
        return found[max(found)] if found else None
    return path if path.is_file() and CHECKPOINT.fullmatch(path.name) else None


def make(source: str, choice: Choice, asked: Asked, running: Running) -> Predictor:
    """The predictor of the model that a user names: classifier, segmentor or detector.

    Raises:
        UserError: where there is no such model, it cannot be read, or it does not take what is asked.
    """
    segmentor = checkpoint_of(source) if choice.model is None else None
    if segmentor is not None:
        _refuse(source, "segmentor", {"--size": asked.size, "--crop-pct": asked.crop_pct,
                                      "--weights": choice.weights != "auto", "--kwargs": choice.kwargs})  # fmt: skip
        from .segmentation import SegmentorPredictor

        return SegmentorPredictor(segmentor, source, running)
    origin = locate(source, choice, detectors=True)
    if "detector" in origin.state:
        _refuse(source, "detector", {"--crop-pct": asked.crop_pct})
        from .detection import DetectorPredictor

        return DetectorPredictor(origin, running, asked.threshold, asked.size)
    from .classification import Classifier

    trained = load(origin, choice)
    data = trained.data
    if asked.size is not None:
        data = dataclasses.replace(data, image_size=asked.size)
    if asked.crop_pct is not None:
        data = dataclasses.replace(data, crop_pct=asked.crop_pct)
    return Classifier(trained, data, running, asked.top)


def _refuse(source: str, kind: str, options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(f"{given[0]} is for other models: {source} is a {kind}, whose checkpoint says it")
