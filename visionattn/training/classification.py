"""Image classification as a task of the training loop: model, loss and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from . import data
from .config import TrainConfig
from .distill import Teacher
from .errors import UserError
from .network import create_model
from .shards import Shards
from .sources import load_images
from .transforms import ToInput, train_transform
from .upload import Upload


class Classification:
    """What the loop needs to know of image classification.

    Args:
        config: the run's options.
        accelerator: devices and precision.
    """

    metrics = ["val_loss", "top1", "top5"]
    score = "top1"

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.train_images, self.val_images = load_images(config.data)
        self.classes = self.train_images.classes
        self.model = create_model(config, self.classes)
        self.teacher = Teacher(config, self.classes).to(accelerator.device) if config.distill.teacher else None
        augment = config.augment
        train_transform(config.data, augment)  # refuses bad options now, before the run has a folder
        self.train_input = ToInput(config.data, accelerator.device, augment)
        self.eval_input = ToInput(config.data, accelerator.device)
        self.upload = Upload(accelerator.device)
        self.unreadable: dict[str, int] = {}
        self.notes: list[str] = []
        self.mix = None
        if augment.mixup or augment.cutmix:
            self.mix = Mixup(
                augment.mixup, augment.cutmix, prob=augment.mix_prob, switch_prob=augment.mix_switch,
                label_smoothing=config.optim.label_smoothing, num_classes=len(self.classes))  # fmt: skip
        self.criterion = self._criterion()
        if len(self.train_images) < config.optim.batch_size:
            raise UserError(
                f"optim.batch_size is {config.optim.batch_size}, "
                f"but there are only {len(self.train_images)} training images"
            )
        micro = config.optim.batch_size // (config.optim.accumulation * accelerator.num_processes)
        if self.mix is not None and micro % 2:
            raise UserError(
                f"optim.batch_size / (optim.accumulation x processes) is {micro}; mixup and cutmix need an even number"
            )
        self.steps_per_epoch = len(self.train_images) // config.optim.batch_size
        self._eval_loader = None

    def _criterion(self) -> nn.Module:
        options = self.config.optim
        if options.loss == "bce":
            return BinaryCrossEntropy(options.label_smoothing, target_threshold=options.bce_threshold)
        if self.mix is not None:
            return SoftTargetCrossEntropy()
        return LabelSmoothingCrossEntropy(options.label_smoothing) if options.label_smoothing else nn.CrossEntropyLoss()

    def sizes(self) -> str:
        """Numbers of training and validation images, for people."""
        unknown = isinstance(self.val_images, Shards) and not self.val_images.samples
        return f"{len(self.train_images)} + {'?' if unknown else len(self.val_images)}"

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the model, enough to build it again."""
        model = self.config.model
        return dict(model=model.name, kwargs=model.kwargs, classes=list(self.classes))

    def compile(self, model: nn.Module, **how: Any) -> nn.Module:
        """The model compiled, by torch.compile with these arguments."""
        return torch.compile(model, **how)

    def batches(self, steps: int, start: int) -> Iterator[data.Batch]:
        """Micro batches on the host, from optimiser step ``start`` to the end of the run."""
        accelerator = self.accelerator
        return data.train_batches(
            self.config, self.train_images, steps, start, accelerator.process_index, accelerator.num_processes,
            accelerator.device.type == "cuda")  # fmt: skip

    def to_device(self, batch: data.Batch, to_input: ToInput) -> tuple[Tensor, Tensor]:
        """The network's input and the classes; notes which images could not be read."""
        for name in filter(None, batch[2]):
            self.unreadable[name] = self.unreadable.get(name, 0) + 1
        images, labels = self.upload(*batch[:2])
        if self.config.run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)  # as bytes, a quarter of the traffic
        return to_input(images), labels

    def loss(self, model: nn.Module, batch: data.Batch, step: int) -> Tensor:
        """Mean loss of one micro batch of a step; draws its random numbers from the generators as they are."""
        images, labels = self.to_device(batch, self.train_input)
        if self.mix is not None:
            mixed_epochs = self.config.total_epochs() - self.config.augment.mix_off_epochs
            self.mix.mixup_enabled = step < mixed_epochs * self.steps_per_epoch
            images, labels = self.mix(images, labels)
        with self.accelerator.autocast():
            answers = self.teacher.answers(images) if self.teacher is not None else None
            logits = model(images)
        loss = self.criterion(logits.float(), labels)
        if answers is None:
            return loss
        return torch.lerp(loss, self.teacher.loss(logits.float(), answers), self.config.distill.alpha)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracies (%) over the validation images, each counted once however many processes there are.

        Returns:
            val_loss, top1, top5, and val_images, the number of images that were read.
        """
        accelerator, classes = self.accelerator, len(self.classes)
        if self._eval_loader is None:
            self._eval_loader = data.eval_loader(
                self.config, self.val_images, accelerator.process_index, accelerator.num_processes,
                accelerator.device.type == "cuda")  # fmt: skip
        metrics = MetricCollection({
            "top1": MulticlassAccuracy(classes, average="micro"),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
        }).to(accelerator.device)  # fmt: skip
        mean_loss, count = MeanMetric().to(accelerator.device), SumMetric().to(accelerator.device)
        training = model.training
        model.eval()
        for batch in self._eval_loader:
            images, labels = self.to_device(batch, self.eval_input)
            readable = torch.tensor([not name for name in batch[2]])
            if not readable.all():
                images, labels = images[readable.to(images.device)], labels[readable.to(labels.device)]
                if not len(labels):
                    continue
            with accelerator.autocast():
                logits = model(images)
            mean_loss.update(nn.functional.cross_entropy(logits.float(), labels), weight=len(labels))
            metrics.update(logits.float(), labels)
            count.update(len(labels))
        model.train(training)
        found = {name: 100 * float(value) for name, value in metrics.compute().items()}
        return dict(val_loss=float(mean_loss.compute()), **found, val_images=int(count.compute()))

    def finish(self, model: nn.Module, found: dict[str, float], folder: Path) -> str:
        """What the last line of a run says of its last evaluation."""
        return (
            f"validation accuracy {found['top1']:.2f} % (top-5 {found['top5']:.2f} %, loss {found['val_loss']:.4f}, "
            f"{found['val_images']} images)"
        )
