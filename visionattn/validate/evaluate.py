"""One trained classifier over one set of images: accuracy, loss, calibration, speed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from visionattn.training.config import DataConfig, TrainConfig
from visionattn.training.data import eval_loader
from visionattn.training.errors import UserError, first_line
from visionattn.training.shards import Shards
from visionattn.training.sources import Images
from visionattn.training.trained import Trained
from visionattn.training.transforms import ToInput
from visionattn.training.upload import Upload

from .labels import RealLabels, matching, numbers


@dataclass
class Result:
    """What an evaluation found.

    Attributes:
        images: how many were evaluated.
        unreadable: names of those that could not be read.
        top1, top5: accuracies in percent; top5 of all classes where there are fewer than five.
        loss: mean cross-entropy.
        ece: expected calibration error, in percent: the mean distance of confidence and accuracy over the images.
        mce: the largest such distance of any bin, in percent.
        images_per_s: images through the network in a second, without their loading; the first batch is left out.
        seconds: of everything.
        bins: for each bin of confidence: (images, mean confidence, accuracy), the last two in [0, 1].
        real_top1, real_top5: percent of images whose first choice, or one of five, is one of their real labels.
    """

    images: int
    unreadable: list[str]
    top1: float
    top5: float
    loss: float
    ece: float
    mce: float
    images_per_s: float
    seconds: float
    bins: list[tuple[int, float, float]]
    real_top1: float | None = None
    real_top5: float | None = None


class _Bins:
    """Counts, confidences and correct answers by confidence; equally wide bins, open at the left as is usual."""

    def __init__(self, count: int):
        self.edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        self.sums = torch.zeros(3, count, dtype=torch.float64)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        confidence, choice = (x.cpu() for x in probabilities.max(1))
        confidence = confidence.double()
        index = (torch.bucketize(confidence, self.edges) - 1).clamp(0, self.sums.shape[1] - 1)
        right = (choice == labels.cpu()).double()
        for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
            self.sums[row].index_add_(0, index, values)

    def rows(self) -> list[tuple[int, float, float]]:
        count = self.sums[0].clamp(min=1)
        both = zip(self.sums[0].tolist(), (self.sums[1] / count).tolist(), (self.sums[2] / count).tolist())
        return [(int(n), confidence, accuracy) for n, confidence, accuracy in both]


class _Real:
    """Accuracy by real labels over batches that come in the order of the images."""

    def __init__(self, real: RealLabels, trained: Trained, images: Images | Shards):
        if isinstance(images, Shards):
            raise UserError("real_labels needs images with names: data.dataset folder or tar, not wds")
        self.real, self.images, self.number = real, images, numbers(trained, real.path)
        self.position, self.count, self.hits = 0, 0, [0, 0]

    def add(self, probabilities: Tensor, readable: Tensor) -> None:
        positions = self.position + readable.nonzero().flatten()
        self.position += len(readable)
        choices = probabilities.topk(min(5, probabilities.shape[1])).indices.tolist()
        for position, order in zip(positions.tolist(), choices):
            wanted = set(self.real.of(self.images.name(position), self.number))
            if wanted:
                self.count += 1
                self.hits[0] += order[0] in wanted
                self.hits[1] += not wanted.isdisjoint(order)

    def rates(self) -> dict[str, float | None]:
        found = [100 * hits / self.count if self.count else None for hits in self.hits]
        return dict(real_top1=found[0], real_top5=found[1])


@torch.inference_mode()
def evaluate(
    trained: Trained, images: Images | Shards, data: DataConfig, device: torch.device,
    autocast: contextlib.AbstractContextManager, bins: int = 15, real: RealLabels | None = None,
    channels_last: bool = False, compiled: bool = False,
) -> Result:  # fmt: skip
    """Every readable image once.

    Args:
        trained: the model and its classes.
        images: labelled pictures; their classes are found among the model's by name.
        data: how pictures become the model's input, and how many at a time.
        device, autocast: where and how to compute.
        bins: of confidence.
        real: real labels, for accuracies by them.
        channels_last: layout of images and weights.
        compiled: run the model through ``torch.compile``.

    Raises:
        UserError: for classes that the model does not know, sizes that it refuses, and no readable image.
        Unreadable: for an image that cannot be read under ``data.unreadable = "stop"``.
    """
    begun = time.perf_counter()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    classes, mapped = len(trained.classes), matching(trained, images.classes)
    by_label = _Real(real, trained, images) if real is not None else None
    model = trained.model.to(device=device, memory_format=layout)
    network = torch.compile(model) if compiled else model
    to_input, upload = ToInput(data, device), Upload(device)
    top1, top5, ece, mce = (
        metric.to(device) for metric in (
            MulticlassAccuracy(classes, average="micro"),
            MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
            MulticlassCalibrationError(classes, n_bins=bins, norm="l1"),
            MulticlassCalibrationError(classes, n_bins=bins, norm="max"),
        )
    )  # fmt: skip
    mean_loss, by_bin = MeanMetric().to(device), _Bins(bins)
    unreadable: list[str] = []
    count, clock = 0, _Clock(device)
    loader = eval_loader(TrainConfig(data=data), images, 0, 1, device.type == "cuda")
    for pixels, labels, names in loader:
        readable = torch.tensor([not name for name in names])
        unreadable += filter(None, names)
        pixels, labels = pixels[readable], mapped[labels[readable]]
        if not len(labels):
            if by_label is not None:
                by_label.position += len(readable)
            continue
        x, labels = upload(pixels, labels)
        x = to_input(x).contiguous(memory_format=layout)
        with autocast, clock.timing(len(labels)):
            logits = _answers(network, x, trained).float()
        mean_loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
        probabilities = logits.softmax(1)
        top1.update(logits, labels)
        for metric in (top5, ece, mce):
            metric.update(logits if metric is top5 else probabilities, labels)
        by_bin.add(probabilities, labels)
        if by_label is not None:
            by_label.add(probabilities, readable)
        count += len(labels)
    if not count:
        raise UserError(f"none of the {len(unreadable)} images can be read")
    return Result(
        count, unreadable, *(100 * float(metric.compute()) for metric in (top1, top5)), float(mean_loss.compute()),
        *(100 * float(metric.compute()) for metric in (ece, mce)), clock.rate(), time.perf_counter() - begun,
        by_bin.rows(), **(by_label.rates() if by_label is not None else {}))  # fmt: skip


def _answers(network: nn.Module, x: Tensor, trained: Trained) -> Tensor:
    try:
        return network(x)
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise UserError(f"{len(x)} images at once take too much memory; lower data.eval_batch_size") from None
        reason = first_line(error)
        raise UserError(
            f"{trained.origin.source} refuses images of {x.shape[2]}x{x.shape[3]} pixels: {reason}"
        ) from None


class _Clock:
    """Images through the network in a second: of all batches but the first, which compiles and warms up."""

    def __init__(self, device: torch.device):
        self.device, self.parts = device, []

    @contextlib.contextmanager
    def timing(self, images: int):
        self._wait()
        begun = time.perf_counter()
        yield
        self._wait()
        self.parts.append((images, time.perf_counter() - begun))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self) -> float:
        images, seconds = map(sum, zip(*(self.parts[1:] or self.parts)))
        return images / max(seconds, 1e-9)
