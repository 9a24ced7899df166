"""The options that the runs of every task have: optimiser, schedule, averaging, how and where a run runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import UserError


@dataclass
class OptimConfig:
    """The optimiser"""

    name: str = "adamw"
    """Any optimiser that timm.optim.create_optimizer_v2 knows."""
    lr: float = 1e-3
    """Peak learning rate, for a step of lr_batch images."""
    lr_batch: int | None = None
    """Batch size that lr is given for: the rate used is lr x batch_size / lr_batch. null: lr is used as it is."""
    weight_decay: float = 0.05
    """Weight decay; biases, norms and what the model names in no_weight_decay() are left out."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer to the one below it, as in fine-tuning; null: one rate for all."""
    betas: tuple[float, float] | None = None
    """Betas of Adam-like optimisers; null takes the optimiser's own."""
    momentum: float = 0.9
    """Momentum of SGD-like optimisers."""
    eps: float | None = None
    """The optimiser's epsilon; null takes the optimiser's own."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser, for example {fused: true}."""
    cuda_graph: bool = False
    """On a GPU, replay clipping and the optimiser's step as one CUDA graph: many times faster for optimisers of many
    small kernels, such as muon; the optimiser must know the argument 'capturable'."""
    batch_size: int = 64
    """Images in one optimiser step, over all processes and accumulation steps: more processes keep the recipe."""
    accumulation: int = 1
    """Forward and backward passes in one optimiser step."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null does not clip."""


@dataclass
class ScheduleConfig:
    """Length and learning-rate schedule"""

    epochs: int = 7
    """Epochs of the schedule, warm-up included."""
    name: Literal["cosine", "steps", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; 'steps' multiplies it by gamma at each of the milestones."""
    milestones: list[int] = field(default_factory=list)
    """For 'steps': the epochs that end with a fall, as [8, 11] of 12."""
    gamma: float = 0.1
    """For 'steps': what the learning rate is multiplied by."""
    warmup_epochs: float = 0.5
    """Epochs over which the learning rate rises linearly from warmup_lr."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """For 'cosine': learning rate that the schedule ends at."""
    cooldown_epochs: int = 0
    """Further epochs at min_lr."""


@dataclass
class EmaConfig:
    """Moving average of the weights"""

    enabled: bool = True
    """Keep an exponential moving average of the weights; it is what is evaluated, and what 'best' is chosen by."""
    decay: float = 0.99
    """Part of the average that stays in one step."""
    warmup: bool = True
    """Let the decay grow with the steps, 1 - (1 + step) ** (-2/3), up to decay, so that early averages follow."""


@dataclass
class RunConfig:
    """How and where the run runs"""

    dir: str | None = None
    """Folder of the run; null takes runs/DATASET-MODEL, or with a number behind it if that is taken."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; 'auto' takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16, fp16: autocast with float32 weights, fp16 (GPU only) with loss scaling; 'auto' is bf16 on a GPU that has
    it, else fp32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """For 'compile': torch.compile's mode; 'reduce-overhead' replays CUDA graphs, much faster where steps are short."""
    channels_last: bool = False
    """Keep images and convolution weights in channels-last order."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """With several processes: 'ddp' keeps the whole state on each; 'fsdp2' shares out weights, gradients, averages and
    the optimiser's state, for networks whose state would not fit. Checkpoints are the same: a run may change over."""
    timeout: float = 15.0
    """With several processes: minutes that one waits for the others, in an evaluation for example, before it gives up.
    A process that is gone is noticed within seconds."""
    sync_bn: bool = False
    """With several processes, let batch norms take their statistics over all of them."""
    deterministic: bool = True
    """Ask PyTorch for deterministic algorithms, so that a GPU too gives the same bits again."""
    threads: int | None = None
    """CPU threads of the main process; null leaves PyTorch's choice."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_epochs: int = 1
    """Epochs between checkpoints; the best weights so far and the last are always saved."""
    checkpoint_steps: int = 0
    """Save also every so many steps; 0 does not."""
    log_steps: int = 10
    """Steps between two entries of loss and learning rate in steps.csv and TensorBoard."""
    progress: bool = True
    """Draw a progress bar where the output is a terminal."""
    wandb: str | None = None
    """Log to this Weights & Biases project too (needs the package wandb)."""


class Recipe:
    """What the loop asks of any task's options, whose sections of these names it reads."""

    optim: OptimConfig
    schedule: ScheduleConfig
    ema: EmaConfig
    run: RunConfig
    resume: str

    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up."""
        per = self.optim.lr_batch
        return self.optim.lr * (self.optim.batch_size / per if per else 1.0)

    def total_epochs(self) -> int:
        """Epochs of the run, cooldown included."""
        return self.schedule.epochs + self.schedule.cooldown_epochs

    def label(self) -> str:
        """What a run's folder is called unless the user names it."""
        raise NotImplementedError

    def fixed_sizes(self) -> bool:
        """Whether every size of image that comes is to be compiled for itself."""
        return False


def require(ok: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse an option's value.

    Raises:
        UserError: unless ``ok``, naming the option, its value, and what is allowed.
    """
    if not ok:
        raise UserError(f"{key} is {value}; it must be {allowed}")


def look_up(config: Any, key: str) -> Any:
    """The value of an option by its dotted name."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def check(
    config: Any, at_least: dict[str, float], probability: Sequence[str] = (), above_zero: Sequence[str] = ()
) -> None:
    """Check options by their dotted names; those that are null pass.

    Raises:
        UserError: for the first that is out of its range.
    """
    for key, least in at_least.items():
        value = look_up(config, key)
        require(value is None or (math.isfinite(value) and value >= least), key, value, f"at least {least}")
    for key in probability:
        value = look_up(config, key)
        require(value is None or 0.0 <= value <= 1.0, key, value, "between 0 and 1")
    for key in above_zero:
        value = look_up(config, key)
        require(value is None or (math.isfinite(value) and value > 0), key, value, "above 0")


def validate_recipe(config: Recipe) -> None:
    """Check what types alone do not say of the options that every task has.

    Raises:
        UserError: naming the option, its value, and what is allowed.
    """
    check(
        config,
        {
            "optim.batch_size": 1, "optim.accumulation": 1, "schedule.epochs": 1, "schedule.warmup_epochs": 0,
            "schedule.cooldown_epochs": 0, "run.eval_every": 1, "run.checkpoint_epochs": 1, "run.checkpoint_steps": 0,
            "run.log_steps": 1, "optim.weight_decay": 0, "schedule.min_lr": 0, "schedule.warmup_lr": 0,
            "run.timeout": 1,
        },
        ["ema.decay"],
        ["optim.lr", "optim.lr_batch", "optim.clip_grad", "optim.eps", "run.threads", "optim.layer_decay",
         "schedule.gamma"],
    )  # fmt: skip
    schedule, optim = config.schedule, config.optim
    require(
        schedule.warmup_epochs < schedule.epochs, "schedule.warmup_epochs", schedule.warmup_epochs,
        f"below schedule.epochs = {schedule.epochs}",
    )  # fmt: skip
    falling = schedule.milestones == sorted(set(schedule.milestones)) and all(
        0 < m < schedule.epochs for m in schedule.milestones
    )
    require(falling, "schedule.milestones", schedule.milestones, f"rising, above 0 and below {schedule.epochs}")
    if optim.cuda_graph and config.run.precision == "fp16":
        raise UserError(
            "optim.cuda_graph is true; run.precision fp16 decides about every step on the host, bf16 does not"
        )
    if optim.cuda_graph and config.run.parallel == "fsdp2":
        raise UserError("optim.cuda_graph is true; it needs run.parallel ddp, as fsdp2 gathers gradients on the host")
    if config.run.precision == "fp16" and config.run.parallel == "fsdp2":
        raise UserError("run.precision is fp16; run.parallel fsdp2 allows fp32 and bf16, which need no loss scaling")
    require(
        optim.batch_size % optim.accumulation == 0, "optim.batch_size", optim.batch_size,
        f"a multiple of optim.accumulation = {optim.accumulation}",
    )  # fmt: skip
