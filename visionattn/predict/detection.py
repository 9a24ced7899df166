"""Detectors: boxes, and masks where there are some."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2.functional import pil_to_tensor

from visionattn.detection.config import DetConfig, DetDataConfig, DetectorConfig
from visionattn.detection.drawing import drawn
from visionattn.detection.network import create_detector
from visionattn.training.errors import UserError, first_line
from visionattn.training.trained import Origin, Running

from . import drawing
from .pictures import Named

HEIGHT = 480
Section = TypeVar("Section")


@dataclass(frozen=True)
class Objects:
    """The answer of a detector.

    Attributes:
        name: of the picture.
        classes: names of the labels.
        found: boxes [n, 4] (x1, y1, x2, y2 in pixels), scores [n], labels [n], masks [n, 1, H, W] if there; the most
            certain first.
    """

    name: str
    classes: list[str]
    found: dict[str, torch.Tensor]

    def record(self) -> dict[str, Any]:
        """Boxes in pixels; of masks how many pixels they have."""
        objects = []
        columns = (self.found[name].tolist() for name in ("boxes", "scores", "labels"))
        for i, (box, score, label) in enumerate(zip(*columns)):
            one = dict(score=round(score, 6), index=label, box=[round(value, 2) for value in box])
            objects.append({"class": self.classes[label]} | one)
            if "masks" in self.found:
                objects[-1]["mask_pixels"] = int((self.found["masks"][i] > 0.5).sum())
        return dict(objects=objects)

    def summary(self) -> str:
        counts = Counter(self.classes[label] for label in self.found["labels"].tolist())
        return ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        return drawn(pil_to_tensor(image), self.found, self.classes, max(HEIGHT, image.height))

    def tile(self, image: Image.Image) -> drawing.Tile:
        shown = drawn(pil_to_tensor(image), self.found, self.classes, HEIGHT)
        return drawing.tile(shown, [self.summary(), self.name])


class DetectorPredictor:
    """The predictor of a detector's checkpoint.

    Args:
        origin: a run's checkpoint.
        running: where and how to compute.
        threshold: score from which an object counts.
        size: short side of images; what the run evaluated with if None.

    Raises:
        UserError: where the checkpoint is damaged or does not say what it takes to build the detector.
    """

    kind = "detection"

    def __init__(self, origin: Origin, running: Running, threshold: float, size: int | None = None):
        state = origin.state
        config = DetConfig()
        try:
            given = dict(state["config"]["model"], pretrained=False, checkpoint=None, backbone_checkpoint=None)
            config.model = _section(DetectorConfig, given)
            config.data = _section(DetDataConfig, state["config"]["data"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{origin.source} does not say how its detector was built: {error}") from None
        if size is not None:
            longest = round(config.data.long_side * size / config.data.short_side)
            config.data = dataclasses.replace(config.data, short_side=size, long_side=longest)
        self.classes = [str(name) for name in state["classes"]]
        self.network, _ = create_detector(config, self.classes)
        try:
            self.network.load_state_dict(load_file(origin.path))
        except Exception as error:  # each kind of damage has an error of its own
            reason = first_line(error)
            raise UserError(f"checkpoint {origin.path} cannot be read: {reason}") from None
        self.network.to(running.device).eval()
        self.running, self.threshold = running, threshold
        self.about: dict[str, Any] = dict(
            source=origin.source, model=f"{config.model.detector} {config.model.name}", weights=origin.weights,
            classes=len(self.classes), short_side=config.data.short_side, threshold=threshold)  # fmt: skip

    @torch.inference_mode()
    def __call__(self, names: Sequence[Named], images: Sequence[Image.Image]) -> list[Objects]:
        pixels = [pil_to_tensor(image).to(self.running.device) for image in images]
        with self.running.autocast:
            answers = self.network(pixels)
        objects = []
        for named, answer in zip(names, answers):
            kept = answer["scores"] >= self.threshold
            order = answer["scores"][kept].argsort(descending=True)
            found = {name: value[kept][order].float().cpu() for name, value in answer.items()}
            objects.append(Objects(named.label, self.classes, dict(found, labels=found["labels"].long())))
        return objects


def _section(kind: type[Section], values: dict[str, Any]) -> Section:
    known = {item.name for item in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in values.items() if key in known})
