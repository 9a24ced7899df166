"""The training loop: one for every task. Steps, averaging, evaluation, checkpoints, clean stop, exact resume.

All random numbers of a step come from a seed of its own (:mod:`.randomness`), the learning rate is a function of the
step, and batches are a function of the step: so a checkpoint needs weights, averages, optimiser and the step's number,
and a run continued from it ends with the bits of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import copy
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
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import Tensor, nn

from . import checkpoint, logs, sharded
from .average import Ema
from .captured import CapturedStep
from .checkpoint import Checkpoint
from .errors import Interrupted, UserError, first_line
from .optim import captures, create_optimizer, peak_group_lr
from .options import plain
from .progress import Progress
from .randomness import Purpose, seed_all, seed_of
from .recipe import Recipe
from .watch import Watch

OPTIONS = ("weight_decay", "betas", "eps", "momentum")  # of a parameter group; the learning rate is the schedule's
DIVERGED = "the last good checkpoint is kept; a lower optim.lr or optim.clip_grad may help"


class Task(Protocol):
    """What is trained: a model, where its batches come from, its loss, and how it is judged."""

    model: nn.Module
    metrics: list[str]  # what evaluate() measures
    score: str  # the one that says which checkpoint is best; larger is better
    steps_per_epoch: int
    unreadable: dict[str, int]  # names of images that could not be read, and how often
    classes: list[str]  # what is told apart
    notes: list[str]  # what there is to say before a run begins

    def sizes(self) -> str: ...
    def describe(self) -> dict[str, Any]: ...
    def compile(self, model: nn.Module, **how: Any) -> nn.Module: ...
    def batches(self, steps: int, start: int) -> Iterator[Any]: ...
    def loss(self, model: nn.Module, batch: Any, step: int) -> Tensor: ...
    def evaluate(self, model: nn.Module) -> dict[str, float]: ...
    def finish(self, model: nn.Module, found: dict[str, float], folder: Path) -> str: ...


class Trainer:
    """Runs a task from wherever it stands to the end of its schedule.

    Args:
        config: the run's options.
        task: what is trained.
        accelerator: devices, processes and precision.
        folder: the run's folder.
        console: where lines and the progress bar go.
    """

    def __init__(self, config: Recipe, task: Task, accelerator: Accelerator, folder: Path, console: Console):
        self.config, self.task, self.accelerator, self.folder, self.console = config, task, accelerator, folder, console
        self.epochs = config.total_epochs()
        self.steps = self.epochs * task.steps_per_epoch
        self.step, self.best = 0, -math.inf
        self._signal: int | None = None
        self._losses: list[Tensor] = []
        self._total, self._count = 0.0, 0  # of the epoch's losses
        model = task.model.to(accelerator.device)
        if config.run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        ema = config.ema
        self.ema = Ema(model, decay=ema.decay, use_warmup=ema.warmup) if ema.enabled else None
        self.plain, self.whole, how = model, None, {}
        if config.run.compile:
            how = dict(mode=config.run.compile_mode, dynamic=False if config.fixed_sizes() else None)
        if config.run.parallel == "fsdp2" and accelerator.num_processes > 1:
            self._share_out(model, how)
            self.model, self.optimizer = model, accelerator.prepare(create_optimizer(config, model))
        else:
            self.model, self.optimizer = accelerator.prepare(model, create_optimizer(config, model))
        self.parameters, self.distributed = list(model.parameters()), self.model
        self.captured_step = None
        if captures(config, accelerator.device):
            self.captured_step = CapturedStep(self.optimizer.optimizer, self.parameters, config.optim.clip_grad)
        if how and self.whole is None:
            self.model = task.compile(self.model, **how)
        self.schedule = self._schedule()

    def _share_out(self, model: nn.Module, how: dict[str, Any]) -> None:
        """Weights and averages in parts; and a whole model to evaluate, as processes may differ in how many batches."""
        sharded.require_elementwise(self.config.optim.name)
        self.whole = copy.deepcopy(model).requires_grad_(False)
        if how:
            for block in sharded.blocks(model):
                block.compile(**how)
        for each in [model] if self.ema is None else [model, self.ema.module]:
            sharded.shard(each, self.accelerator.device, self.accelerator.num_processes)

    def _schedule(self) -> CosineLRScheduler | MultiStepLRScheduler:
        options, per_epoch = self.config.schedule, self.task.steps_per_epoch
        warmup = dict(warmup_t=self._warmup(), warmup_lr_init=options.warmup_lr, warmup_prefix=True, t_in_epochs=False)
        if options.name == "steps":
            # timm's falls come a step before their time
            falls = [epoch * per_epoch - self._warmup() + 1 for epoch in options.milestones]
            return MultiStepLRScheduler(self.optimizer, falls, decay_rate=options.gamma, **warmup)
        return CosineLRScheduler(
            self.optimizer,
            t_initial=max(1, options.epochs * per_epoch - self._warmup()),
            lr_min=self.config.peak_lr() if options.name == "constant" else options.min_lr, **warmup)  # fmt: skip

    def _warmup(self) -> int:
        return round(self.config.schedule.warmup_epochs * self.task.steps_per_epoch)

    # Checkpoints.

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint folder.

        Raises:
            UserError: where it is damaged or of another model or task.
        """
        found = checkpoint.load(path)
        before = found.state["config"]["optim"]
        now = dict(self.task.describe(), **{
            "optim.name": self.config.optim.name, "optim.batch_size": self.config.optim.batch_size})  # fmt: skip
        then = dict(found.state, **{"optim.name": before["name"], "optim.batch_size": before["batch_size"]})
        for key, value in now.items():
            if then.get(key) != value:
                raise UserError(f"resume: {path} was trained with {key} = {then.get(key)}, but now it is {value}")
        if bool(found.ema) != (self.ema is not None):
            raise UserError(f"resume: {path} and ema.enabled disagree on whether averaged weights are kept")
        try:
            self.plain.load_state_dict(sharded.parts(found.model, self.plain))
            if self.ema is not None:
                self.ema.module.load_state_dict(sharded.parts(found.ema, self.ema.module))
            named = [{key: group[key] for key in OPTIONS if key in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(sharded.optimizer_parts(found.optimizer, self.optimizer))
            for group, options in zip(self.optimizer.param_groups, named):
                group.update(options)  # the checkpoint's would silently win over those that this run was given
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"resume: {path} does not fit this run: {first_line(error)}") from None
        if self.accelerator.scaler is not None and found.state.get("scaler"):
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step, self.best = found.state["step"], found.state["best"]

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of the state after ``self.step`` steps (the first process; the others give their parts).

        Raises:
            UserError: where weights are not finite, or it cannot be written; the last checkpoint stays as it is.
        """
        if not self.accelerator.is_main_process and self.whole is None:
            return
        if not bool(torch.stack([sharded.local(x).isfinite().all() for x in self.parameters]).all()):
            raise UserError(f"the weights are not finite after step {self.step}; {DIVERGED}")
        state = dict(
            step=self.step, epoch=self.step / self.task.steps_per_epoch, best=self.best, config=plain(self.config),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            **self.task.describe())  # fmt: skip
        ema = self.ema.module.state_dict() if self.ema is not None else {}
        held = [self.plain.state_dict(), ema, self.optimizer.state_dict()]
        if self.whole is not None:
            held = sharded.whole(held)
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / "checkpoints", Checkpoint(*held, state), best)

    # Signals.

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _asked_to_stop(self, ends_epoch: bool) -> int:
        """The signal that any process got, 0 for none: all of them must stop after the same step.

        Several processes ask each other when they log, since that makes the host wait for the device.
        """
        number = self._signal or 0
        if self.accelerator.num_processes > 1:
            if not ends_epoch and self.step % self.config.run.log_steps:
                return 0
            flag = torch.tensor(number, device=self.accelerator.device)
            number = int(self.accelerator.reduce(flag, reduction="sum").clamp(max=15))
        return number

    # The loop.

    def train(self) -> dict[str, float]:
        """Train to the end of the schedule.

        Returns:
            The last evaluation.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the state is saved.
            UserError: where the loss is not finite, or a checkpoint cannot be written.
            Lost: where another process of the run is gone.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        main = self.accelerator.is_main_process
        log = logs.RunLog(self.folder, self.task.metrics, self.step, self.config) if main else None
        progress = Progress(self.console, self.config.run.progress and main, self.steps, self.step)
        watch = Watch(self.accelerator.process_index, self.accelerator.num_processes)
        try:
            with progress, watch:
                return self._run(log, progress)
        finally:
            if log is not None:
                log.close()
                logs.draw_curves(self.folder)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, log: logs.RunLog | None, progress: Progress) -> dict[str, float]:
        run, per_epoch = self.config.run, self.task.steps_per_epoch
        if self.step >= self.steps:
            return self._evaluate()
        found: dict[str, float] = {}
        batches = self.task.batches(self.steps, self.step)
        self.model.train()
        self._clock, self._clocked = time.perf_counter(), self.step
        begun = self._clock
        while self.step < self.steps:
            rate = self._set_rate()
            self._losses.append(self._one_step(batches))
            self.step += 1
            ends_epoch, is_last = self.step % per_epoch == 0, self.step == self.steps
            epoch = self.step // per_epoch
            number = self._asked_to_stop(ends_epoch)
            due = ends_epoch and (epoch % run.checkpoint_epochs == 0 or is_last)
            due = due or bool(number) or (run.checkpoint_steps > 0 and self.step % run.checkpoint_steps == 0)
            if self.step % run.log_steps == 0 or ends_epoch or due:
                self._settle(rate, log, progress)
            better = False
            if ends_epoch and (epoch % run.eval_every == 0 or is_last):
                found = self._evaluate()
                better = found[self.task.score] > self.best
                self.best = max(self.best, found[self.task.score])
                loss, seconds = self._total / max(self._count, 1), time.perf_counter() - begun
                row = dict(step=self.step, epoch=epoch, train_loss=loss, **found, seconds=round(seconds, 2))
                if log is not None:
                    log.epoch(row)
                progress.say(
                    f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  "
                    + "  ".join(f"{name} {found[name]:.4g}" for name in self.task.metrics)
                    + f"  {seconds:.0f} s"
                )
                self._total, self._count = 0.0, 0
            if due or better:
                self.save(better)
            if ends_epoch:
                self._clock, self._clocked = time.perf_counter(), self.step  # evaluating and saving is not training
            if number:
                raise Interrupted(number)
        return found

    def _evaluate(self) -> dict[str, float]:
        found = self.task.evaluate(self.judged())
        self.model.train()
        return found

    def judged(self) -> nn.Module:
        """The model to evaluate: the averaged one where averages are kept, whole on every process."""
        model = self.ema.module if self.ema is not None else self.plain
        if self.whole is None:
            return model
        self.whole.load_state_dict(sharded.whole(model.state_dict()))
        return self.whole

    def _settle(self, rate: float, log: logs.RunLog | None, progress: Progress) -> None:
        """Take the losses since the last time from the device, check and log them."""
        losses = torch.stack(self._losses)
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, reduction="mean")
        values = losses.tolist()
        self._losses = []
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(f"the loss is {value} after step {self.step - len(values) + i + 1}; {DIVERGED}")
        self._total, self._count = self._total + sum(values), self._count + len(values)
        now = time.perf_counter()
        speed = (self.step - self._clocked) * self.config.optim.batch_size / max(now - self._clock, 1e-9)
        self._clock, self._clocked = now, self.step
        epoch, loss = self.step / self.task.steps_per_epoch, sum(values) / len(values)
        memory = logs.memory_gib(self.accelerator.device)
        if log is not None:
            log.step(dict(step=self.step, epoch=round(epoch, 4), loss=loss, lr=rate, images_per_s=round(speed, 1),
                          memory_gib=round(memory, 3)))  # fmt: skip
            for line in log.unreadable(self.task.unreadable):
                progress.say(line)
        progress.update(self.step, epoch, loss, speed, memory)

    def _set_rate(self) -> float:
        """The learning rate of the coming step, a function of its number alone."""
        self.schedule.step_update(min(self.step, self.config.schedule.epochs * self.task.steps_per_epoch))
        return peak_group_lr(self.optimizer)

    def _one_step(self, batches: Iterator[Any]) -> Tensor:
        """One optimiser step; returns its mean loss, still on the device."""
        config, accelerator = self.config, self.accelerator
        parts = config.optim.accumulation
        loss_sum = torch.zeros((), device=accelerator.device)
        for micro in range(parts):
            batch = next(batches)
            seed = seed_of(Purpose.STEP, config.run.seed, self.step, micro, accelerator.process_index)
            seed_all(seed, accelerator.device)
            last = micro == parts - 1
            # gradients are averaged over the processes once a step
            with contextlib.nullcontext() if last else accelerator.no_sync(self.distributed):
                loss = self.task.loss(self.model, batch, self.step) / parts
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
