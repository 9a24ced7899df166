"""The training loop: one for every task. Steps, averaging, evaluation, checkpoints, clean stop, exact resume.

All random numbers of a step come from a seed of its own (:mod:`.randomness`), the learning rate is a function of the
step, and batches are a function of the step: so a checkpoint needs weights, averages, optimiser and the step's number,
and a run continued from it ends with the bits of one that was never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.console import Console
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from . import checkpoint, logs
from .average import Ema
from .captured import CapturedStep
from .checkpoint import Checkpoint
from .config import TrainConfig
from .errors import Interrupted, UserError
from .options import plain
from .progress import Progress
from .randomness import Purpose, seed_all, seed_of

OPTIONS = ("weight_decay", "betas", "eps", "momentum")  # of a parameter group; the learning rate is the schedule's


class Task(Protocol):
    """What is trained: a model, where its batches come from, its loss, and how it is judged."""

    model: nn.Module
    metrics: list[str]  # what evaluate() measures
    score: str  # the one that says which checkpoint is best; larger is better
    steps_per_epoch: int

    def describe(self) -> dict[str, Any]: ...
    def batches(self, steps: int, start: int) -> Iterator[Any]: ...
    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...
    def evaluate(self, model: nn.Module) -> dict[str, float]: ...


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    options = config.optim
    more = dict(options.kwargs)
    if options.eps is not None:
        more["eps"] = options.eps
    if options.betas is not None:
        more["betas"] = tuple(options.betas)
    if _captures(config, next(model.parameters()).device):
        more["capturable"] = True
    try:
        return create_optimizer_v2(
            model,
            options.name,
            lr=config.peak_lr(),
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            **more,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"optim.name is {options.name!r}: {(str(error).splitlines() or ['?'])[0]}") from None


def _captures(config: TrainConfig, device: torch.device) -> bool:
    return config.optim.cuda_graph and device.type == "cuda"


class Trainer:
    """Runs a task from wherever it stands to the end of its schedule.

    Args:
        config: the run's options.
        task: what is trained.
        accelerator: devices, precision, processes.
        folder: the run's folder.
        console: where messages go.
    """

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator, folder: Path, console: Console):
        self.config, self.task, self.accelerator, self.folder, self.console = config, task, accelerator, folder, console
        self.epochs = config.total_epochs()
        self.steps = self.epochs * task.steps_per_epoch
        self.step, self.best = 0, -math.inf
        self._signal: int | None = None
        model = task.model
        if config.run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        ema = config.ema
        self.ema = Ema(model.to(accelerator.device), decay=ema.decay, use_warmup=ema.warmup) if ema.enabled else None
        self.plain, self.parameters = model, list(model.parameters())
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(config, model.to(accelerator.device)))
        self.captured_step = None
        if _captures(config, accelerator.device):
            inner = self.optimizer.optimizer
            self.captured_step = CapturedStep(inner, self.parameters, config.optim.clip_grad)
        if config.run.compile:
            self.model = torch.compile(self.model, mode=config.run.compile_mode)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(1, config.schedule.epochs * task.steps_per_epoch - self._warmup()),
            lr_min=config.peak_lr() if config.schedule.name == "constant" else config.schedule.min_lr,
            warmup_t=self._warmup(), warmup_lr_init=config.schedule.warmup_lr, warmup_prefix=True,
            t_in_epochs=False)  # fmt: skip

    def _warmup(self) -> int:
        return round(self.config.schedule.warmup_epochs * self.task.steps_per_epoch)

    # Checkpoints.

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint folder.

        Raises:
            UserError: where it is damaged or of another model or task.
        """
        found = checkpoint.load(path)
        for key, value in self.task.describe().items():
            if found.state.get(key) != value:
                raise UserError(
                    f"resume: {path} was trained with {key} = {found.state.get(key)}, but now it is {value}"
                )
        name = found.state["config"]["optim"]["name"]
        if name != self.config.optim.name:
            raise UserError(
                f"resume: {path} was trained with optim.name = {name}, but now it is {self.config.optim.name}"
            )
        if bool(found.ema) != (self.ema is not None):
            raise UserError(f"resume: {path} and ema.enabled disagree on whether averaged weights are kept")
        try:
            self.plain.load_state_dict(found.model)
            if self.ema is not None:
                self.ema.module.load_state_dict(found.ema)
            named = [{key: group[key] for key in OPTIONS if key in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(found.optimizer)
            for group, options in zip(self.optimizer.param_groups, named):
                group.update(options)  # the checkpoint's would silently win over those that this run was given
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"resume: {path} does not fit this run: {str(error).splitlines()[0]}") from None
        self.step, self.best = found.state["step"], found.state["best"]

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of the state after ``self.step`` steps (the first process only)."""
        if not self.accelerator.is_main_process:
            return
        state = dict(
            step=self.step, epoch=self.step / self.task.steps_per_epoch, best=self.best, config=plain(self.config),
            **self.task.describe())  # fmt: skip
        ema = self.ema.module.state_dict() if self.ema is not None else {}
        checkpoint.save(
            self.folder / "checkpoints",
            Checkpoint(self.plain.state_dict(), ema, self.optimizer.state_dict(), state),
            best,
        )

    # The loop.

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _asked_to_stop(self) -> int:
        """The signal that any process got, 0 for none: all of them must stop after the same step."""
        number = self._signal or 0
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(number, device=self.accelerator.device)
            number = int(self.accelerator.reduce(flag, reduction="sum").clamp(max=15))
        return number

    def train(self) -> dict[str, float]:
        """Train to the end of the schedule.

        Returns:
            The last evaluation.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the state is saved.
            UserError: where the loss is not finite.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        main = self.accelerator.is_main_process
        log = logs.RunLog(self.folder, self.task.metrics, self.step) if main else None
        progress = Progress(self.console, self.config.run.progress and main, self.steps, self.step)
        try:
            with progress:
                return self._run(log, progress)
        finally:
            if log is not None:
                log.close()
                logs.draw_curves(self.folder)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, log: logs.RunLog | None, progress: Progress) -> dict[str, float]:
        config, per_epoch = self.config, self.task.steps_per_epoch
        found: dict[str, float] = {}
        if self.step >= self.steps:
            return self.task.evaluate(self.ema.module if self.ema is not None else self.plain)
        batches = self.task.batches(self.steps, self.step)
        self.model.train()
        started, begun, last_step = time.perf_counter(), time.perf_counter(), self.step
        losses: list[Tensor] = []
        total, count = 0.0, 0
        while self.step < self.steps:
            rate = self._set_rate()
            losses.append(self._one_step(batches))
            self.step += 1
            ends_epoch = self.step % per_epoch == 0
            if self.step % config.run.log_steps == 0 or ends_epoch:
                values = torch.stack(losses).tolist()
                loss = sum(values) / len(values)
                if not math.isfinite(loss):
                    raise UserError(
                        f"the loss is {loss} after step {self.step}; a lower optim.lr or optim.clip_grad may help"
                    )
                total, count, losses = total + sum(values), count + len(values), []
                now = time.perf_counter()
                speed = (self.step - last_step) * config.optim.batch_size / max(now - started, 1e-9)
                started, last_step = now, self.step
                if log is not None:
                    log.step(
                        dict(
                            step=self.step,
                            epoch=round(self.step / per_epoch, 4),
                            loss=loss,
                            lr=rate,
                            images_per_s=round(speed, 1),
                        )
                    )
                progress.update(self.step, self.step / per_epoch, loss, speed)
            epoch = self.step // per_epoch
            due = ends_epoch and (epoch % config.run.checkpoint_epochs == 0 or self.step == self.steps)
            due = due or (config.run.checkpoint_steps and self.step % config.run.checkpoint_steps == 0)
            better = False
            if ends_epoch and (epoch % config.run.eval_every == 0 or self.step == self.steps):
                found = self.task.evaluate(self.ema.module if self.ema is not None else self.plain)
                self.model.train()
                better = found[self.task.score] > self.best
                self.best = max(self.best, found[self.task.score])
                seconds = time.perf_counter() - begun
                if log is not None:
                    log.epoch(
                        dict(
                            step=self.step,
                            epoch=epoch,
                            train_loss=total / max(count, 1),
                            **found,
                            seconds=round(seconds, 2),
                        )
                    )
                progress.say(f"epoch {epoch}/{self.epochs}  loss {total / max(count, 1):.4f}  " + "  ".join(
                    f"{name} {value:.4g}" for name, value in found.items()) + f"  {seconds:.0f} s")  # fmt: skip
                total, count = 0.0, 0
            if due or better:
                self.save(better)
            if ends_epoch:
                started, last_step = time.perf_counter(), self.step  # evaluating and saving is not training
            if number := self._asked_to_stop():
                self.save()
                raise Interrupted(number)
        return found

    def _set_rate(self) -> float:
        """The learning rate of the coming step, a function of its number alone."""
        self.schedule.step_update(min(self.step, self.config.schedule.epochs * self.task.steps_per_epoch))
        return self.optimizer.param_groups[0]["lr"]

    def _one_step(self, batches: Iterator[Any]) -> Tensor:
        """One optimiser step; returns its mean loss, still on the device."""
        config, accelerator = self.config, self.accelerator
        parts = config.optim.accumulation
        loss_sum = torch.zeros((), device=accelerator.device)
        for micro in range(parts):
            batch = next(batches)
            seed = seed_of(Purpose.STEP, config.run.seed, self.step, micro, accelerator.process_index)
            seed_all(seed, accelerator.device)
            loss = self.task.loss(self.model, batch) / parts
            accelerator.backward(loss)
            loss_sum += loss.detach()
        if self.captured_step is not None:
            self.captured_step()
        else:
            if config.optim.clip_grad:
                accelerator.clip_grad_norm_(self.parameters, config.optim.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.plain, step=self.step)
        return loss_sum
