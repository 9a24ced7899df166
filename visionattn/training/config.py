"""The options of a training run, as dataclasses: the source of ``--help``, of the YAML files and of their checks.

The defaults are a whole recipe of their own: the one that ``train`` runs when it is given nothing (gna_nano on the
generated data set `shapes`, a few minutes on a CPU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import UserError


@dataclass
class ModelConfig:
    """The network"""

    name: str = "gna_nano"
    """Any model that timm.create_model knows; importing visionattn adds ours."""
    pretrained: bool = False
    """Start from the published weights of the model; the classifier is new if its number of classes differs."""
    checkpoint: str | None = None
    """Start from these weights: a run's folder or checkpoint (its averaged weights, if it has them), or a file that the
    model's checkpoint filter understands. The classifier is new unless the file was trained on the same classes."""
    grad_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: less memory, more time."""
    drop_path: float | None = None
    """Stochastic depth: the rate of the last block, rising linearly from 0 at the first; null leaves the model's."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model, for example {stem_stride: 2}."""


@dataclass
class DataConfig:
    """The images"""

    dataset: Literal["shapes", "folder", "tar", "wds", "hfds", "noise"] = "shapes"
    """Where images come from: 'shapes' is generated from a seed, 'folder' reads ROOT/SPLIT/CLASS/*.jpg, 'tar' reads
    ROOT/SPLIT.tar with CLASS/*.jpg in it, 'wds' streams WebDataset shards, 'hfds' is a Hugging Face dataset, 'noise' is
    random pixels in memory, to measure how fast everything else is."""
    root: str | None = None
    """For 'folder', 'tar' and 'wds': the directory (for 'wds' also an address) that holds the splits; for 'hfds': the
    dataset's name or directory."""
    train_split: str = "train"
    """The training split: a directory, a tar's name without .tar, a split of the Hugging Face dataset; for 'wds' a
    split in ROOT/_info.json, a pattern such as train-{0000..0146}.tar, or what the shards' names begin with."""
    val_split: str = "val"
    """The validation split, likewise."""
    image_size: int = 48
    """Height and width in pixels of what the network sees."""
    progressive_sizes: list[int] | None = None
    """Training images grow over the epochs: these sizes in turn for an equal part of the schedule each, the last being
    image_size (EfficientNetV2, arXiv 2104.00298)."""
    cache: bool = False
    """For 'folder', 'tar' and 'hfds': decode every image once and keep them all in memory as uint8 (for small images
    such as CIFAR)."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: 'stop' ends the run; 'skip' names it in the output and in unreadable.txt,
    trains on the next image instead, and leaves it out of evaluations."""
    input_key: str | None = None
    """For 'wds': extensions of image files, the first found is taken (null: jpg;jpeg;png;webp); for 'hfds': the column
    of the images (null: image)."""
    target_key: str | None = None
    """For 'wds': the field of the sample's json file that holds the class (null: the cls file); for 'hfds': the column
    of the classes (null: label)."""
    classes: int | None = None
    """For 'wds': the number of classes."""
    train_samples: int | None = None
    """For 'wds': training images in an epoch (null: what ROOT/_info.json says)."""
    shuffle_buffer: int = 4096
    """For 'wds': undecoded images that every worker shuffles among."""
    workers: int = 0
    """Worker processes for loading and augmenting; 0 does it in the main process."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channels in [0, 1], subtracted from the images."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels, which the images are divided by."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """How images are resized; 'random' draws bilinear or bicubic for every training image."""
    crop_pct: float = 1.0
    """Evaluation: the image's short side is resized to image_size / crop_pct and its centre is cropped."""
    crop_mode: Literal["center", "squash", "border"] = "center"
    """Evaluation: 'center' crops the centre; 'squash' resizes both sides to image_size / crop_pct before that; 'border'
    resizes the long side and pads."""
    eval_batch_size: int = 250
    """Images in one evaluation step on each process."""
    shapes_train: int = 6000
    """For 'shapes': number of training images."""
    shapes_val: int = 1000
    """For 'shapes': number of validation images."""
    shapes_seed: int = 0
    """For 'shapes': the seed of the images; independent of run.seed, so that runs share their validation images."""

    noise_train: int = 12800
    """For 'noise': number of training images (a tenth as many for validation), of 1000 classes."""


@dataclass
class AugmentConfig:
    """Augmentation of the training images"""

    crop: Literal["resized", "padded", "none"] = "none"
    """'resized': a random area at a random aspect ratio, as for ImageNet; 'padded': a random crop after padding, as for
    CIFAR; 'none': resize and crop the centre."""
    padding: int = 4
    """For the crop 'padded': pixels added on every side."""
    scale: tuple[float, float] = (0.08, 1.0)
    """For the crop 'resized': range of the area, as a part of the image."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """For the crop 'resized': range of the aspect ratio."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; not applied together with auto_augment."""
    auto_augment: str | None = None
    """timm's policy, for example rand-m9-mstd0.5-inc1 (RandAugment), original (AutoAugment), augmix-m3-w3."""
    erase: float = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What random erasing fills in: zeros, one random colour, or random pixels."""
    mixup: float = 0.0
    """Alpha of mixup; 0 switches it off."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 switches it off."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed, where mixup or cutmix is on."""
    mix_switch: float = 0.5
    """Probability of cutmix instead of mixup, where both are on."""
    mix_off_epochs: int = 0
    """How many epochs at the end see no mixed batches."""
    repeats: int = 1
    """How often an image comes in a batch, each time augmented anew; an epoch then takes fewer images."""


@dataclass
class OptimConfig:
    """Optimiser and loss"""

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
    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy, or binary cross-entropy of each class for itself ("ResNet strikes back", arXiv 2110.00476)."""
    bce_threshold: float | None = None
    """For 'bce': targets above this count as 1 and others as 0, where mixing made them something between."""
    label_smoothing: float = 0.0
    """Part of the target that is spread over all classes."""


@dataclass
class DistillConfig:
    """Learning from a teacher"""

    teacher: str | None = None
    """Any model that timm knows, whose answers are learnt as well (Hinton et al., arXiv 1503.02531); null: none."""
    checkpoint: str | None = None
    """The teacher's weights, as model.checkpoint; null takes its published ones."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model for the teacher."""
    alpha: float = 0.5
    """Part of the loss that is the teacher's."""
    temperature: float = 1.0
    """What both networks' logits are divided by; the teacher's loss is multiplied by its square."""
    hard: bool = False
    """Learn the teacher's first choice as if it were the label (DeiT, arXiv 2012.12877), not its probabilities."""


@dataclass
class ScheduleConfig:
    """Length and learning-rate schedule"""

    epochs: int = 7
    """Epochs of the schedule, warm-up included."""
    name: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: float = 0.5
    """Epochs over which the learning rate rises linearly from warmup_lr."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate that the schedule ends at."""
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


@dataclass
class TrainConfig:
    """The run as a whole"""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network"""
    data: DataConfig = field(default_factory=DataConfig)
    """The images"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and loss"""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Learning from a teacher"""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Length and learning-rate schedule"""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Moving average of the weights"""
    run: RunConfig = field(default_factory=RunConfig)
    """How and where the run runs"""
    resume: str = "none"
    """'none' starts anew; 'auto' continues the run folder's last checkpoint, or starts if there is none; a path
    continues that checkpoint (its folder, or a run folder)."""

    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up."""
        per = self.optim.lr_batch
        return self.optim.lr * (self.optim.batch_size / per if per else 1.0)

    def total_epochs(self) -> int:
        """Epochs of the run, cooldown included."""
        return self.schedule.epochs + self.schedule.cooldown_epochs


def _require(ok: bool, key: str, value: Any, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key} is {value}; it must be {allowed}")


def validate(config: TrainConfig) -> None:
    """Check what types alone do not say.

    Raises:
        UserError: naming the option, its value, and what is allowed.
    """
    at_least = {
        "data.image_size": 1, "data.workers": 0, "data.eval_batch_size": 1, "data.shapes_train": 1,
        "data.shapes_val": 1, "data.noise_train": 10, "augment.padding": 0, "optim.batch_size": 1,
        "optim.accumulation": 1,
        "schedule.epochs": 1, "schedule.warmup_epochs": 0, "schedule.cooldown_epochs": 0, "run.eval_every": 1,
        "run.checkpoint_epochs": 1, "run.checkpoint_steps": 0, "run.log_steps": 1,
        "augment.mixup": 0, "augment.cutmix": 0, "augment.mix_off_epochs": 0, "augment.color_jitter": 0,
        "optim.weight_decay": 0,
        "schedule.min_lr": 0, "schedule.warmup_lr": 0, "augment.repeats": 1, "data.shuffle_buffer": 1,
    }  # fmt: skip
    probability = [
        "augment.hflip", "augment.vflip", "augment.erase", "augment.mix_prob", "augment.mix_switch", "model.drop_path",
        "optim.label_smoothing", "ema.decay", "distill.alpha",
    ]  # fmt: skip
    above_zero = [
        "optim.lr", "data.crop_pct", "optim.lr_batch", "optim.clip_grad", "optim.eps", "run.threads",
        "optim.layer_decay", "distill.temperature", "data.classes", "data.train_samples",
    ]  # fmt: skip

    def look_up(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(config, section), name)

    for key, least in at_least.items():
        _require(math.isfinite(look_up(key)) and look_up(key) >= least, key, look_up(key), f"at least {least}")
    for key in probability:
        _require(look_up(key) is None or 0.0 <= look_up(key) <= 1.0, key, look_up(key), "between 0 and 1")
    for key in above_zero:
        value = look_up(key)
        _require(value is None or (math.isfinite(value) and value > 0), key, value, "above 0")
    schedule = config.schedule
    _require(
        schedule.warmup_epochs < schedule.epochs, "schedule.warmup_epochs", schedule.warmup_epochs,
        f"below schedule.epochs = {schedule.epochs}",
    )  # fmt: skip
    _require(
        config.augment.mix_off_epochs <= config.total_epochs(), "augment.mix_off_epochs", config.augment.mix_off_epochs,
        f"at most all {config.total_epochs()} epochs",
    )  # fmt: skip
    _require(min(config.data.std) > 0, "data.std", config.data.std, "above 0 for every channel")
    if config.data.dataset not in ("shapes", "noise") and not config.data.root:
        raise UserError(
            f"data.root is not set; data.dataset {config.data.dataset!r} needs to know where the images are"
        )
    sizes = config.data.progressive_sizes
    if sizes is not None:
        _require(
            bool(sizes) and min(sizes) > 0 and sizes[-1] == config.data.image_size, "data.progressive_sizes", sizes,
            f"sizes above 0 that end with data.image_size = {config.data.image_size}",
        )  # fmt: skip
    if config.optim.cuda_graph and config.run.precision == "fp16":
        raise UserError(
            "optim.cuda_graph is true; run.precision fp16 decides about every step on the host, bf16 does not"
        )
    parts = config.optim.accumulation
    _require(
        config.optim.batch_size % parts == 0, "optim.batch_size", config.optim.batch_size,
        f"a multiple of optim.accumulation = {parts}",
    )  # fmt: skip
    _require(
        config.optim.batch_size % config.augment.repeats == 0, "augment.repeats", config.augment.repeats,
        f"a divisor of optim.batch_size = {config.optim.batch_size}",
    )  # fmt: skip
    micro = config.optim.batch_size // parts
    if (config.augment.mixup or config.augment.cutmix) and micro % 2:
        raise UserError(f"optim.batch_size / optim.accumulation is {micro}; mixup and cutmix need an even number")
