"""Image classification as a task of the training loop: model, loss and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from . import data
from .config import TrainConfig
from .errors import UserError
from .randomness import Purpose, seed_host, seed_of


def create_model(config: TrainConfig, classes: int) -> nn.Module:
    """The network with fresh weights from the run's seed, or pretrained ones.

    Raises:
        UserError: unknown name or argument, or no pretrained weights.
    """
    options = config.model
    if not timm.is_model(options.name):
        family = options.name.split("_")[0]
        known = timm.list_models(f"{family}*")[:6] or timm.list_models("gna*")
        raise UserError(f"model.name is {options.name!r}, which timm does not know; for example: {', '.join(known)}")
    seed_host(seed_of(Purpose.WEIGHTS, config.run.seed))
    try:
        return timm.create_model(
            options.name, pretrained=options.pretrained, num_classes=classes, drop_path_rate=options.drop_path,
            **options.kwargs)  # fmt: skip
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model {options.name} cannot be built: {(str(error).splitlines() or ['?'])[0]}") from None


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
        self.train_images, self.val_images = data.load_images(config.data)
        self.classes = self.train_images.classes
        self.model = create_model(config, len(self.classes))
        augment = config.augment
        data.train_transform(config.data, augment)  # refuses bad options now, before the run has a folder
        self.train_input = data.ToInput(config.data, accelerator.device, augment)
        self.eval_input = data.ToInput(config.data, accelerator.device)
        self.mix = None
        if augment.mixup or augment.cutmix:
            self.mix = Mixup(
                augment.mixup, augment.cutmix, prob=augment.mix_prob, switch_prob=augment.mix_switch,
                label_smoothing=config.optim.label_smoothing, num_classes=len(self.classes))  # fmt: skip
            self.criterion: nn.Module = SoftTargetCrossEntropy()
        else:
            smoothing = config.optim.label_smoothing
            self.criterion = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
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

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the model, enough to build it again."""
        model = self.config.model
        return dict(model=model.name, kwargs=model.kwargs, classes=list(self.classes))

    def batches(self, steps: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro batches (images, classes) on the host, from optimiser step ``start`` to the end of the run."""
        accelerator = self.accelerator
        return iter(data.train_loader(
            self.config, self.train_images, steps, start, accelerator.process_index, accelerator.num_processes,
            accelerator.device.type == "cuda"))  # fmt: skip

    def to_device(self, batch: tuple[Tensor, Tensor], to_input: data.ToInput) -> tuple[Tensor, Tensor]:
        images, labels = (x.to(self.accelerator.device, non_blocking=True) for x in batch)
        images = to_input(images)
        if self.config.run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of one micro batch; draws its random numbers from the generators as they are."""
        images, labels = self.to_device(batch, self.train_input)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        with self.accelerator.autocast():
            logits = model(images)
        return self.criterion(logits.float(), labels)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracies (%) over the validation images, each counted once however many processes there are."""
        accelerator, classes = self.accelerator, len(self.classes)
        if self._eval_loader is None:
            self._eval_loader = data.eval_loader(
                self.config, self.val_images, accelerator.process_index, accelerator.num_processes,
                accelerator.device.type == "cuda")  # fmt: skip
        accuracy = MetricCollection({
            "top1": MulticlassAccuracy(classes, average="micro"),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
        }).to(accelerator.device)  # fmt: skip
        mean_loss = MeanMetric().to(accelerator.device)
        training = model.training
        model.eval()
        for batch in self._eval_loader:
            images, labels = self.to_device(batch, self.eval_input)
            with accelerator.autocast():
                logits = model(images)
            mean_loss.update(nn.functional.cross_entropy(logits.float(), labels), weight=len(labels))
            accuracy.update(logits.float(), labels)
        model.train(training)
        found = {name: 100 * float(value) for name, value in accuracy.compute().items()}
        return dict(val_loss=float(mean_loss.compute()), **found)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Within the block PyTorch uses ``count`` threads for one operation; None leaves its choice."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
