"""The options of a training run, as dataclasses: the source of ``--help``, of the YAML files and of their checks.

The defaults are a whole recipe of their own: the one that ``train`` runs when it is given nothing (gna_nano on the
generated data set `shapes`, a few minutes on a CPU).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import UserError
from .recipe import EmaConfig, OptimConfig, Recipe, RunConfig, ScheduleConfig, check, require, validate_recipe


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
class ClassifierOptimConfig(OptimConfig):
    """Optimiser and loss"""

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
class TrainConfig(Recipe):
    """The run as a whole"""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network"""
    data: DataConfig = field(default_factory=DataConfig)
    """The images"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images"""
    optim: ClassifierOptimConfig = field(default_factory=ClassifierOptimConfig)
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

    def label(self) -> str:
        """What a run's folder is called unless the user names it."""
        return f"{self.data.dataset}-{self.model.name}"

    def fixed_sizes(self) -> bool:
        """With growing images each size is compiled for itself, as fast as if it were the only one."""
        return bool(self.data.progressive_sizes)


def validate(config: TrainConfig) -> None:
    """Check what types alone do not say.

    Raises:
        UserError: naming the option, its value, and what is allowed.
    """
    at_least = {
        "data.image_size": 1, "data.workers": 0, "data.eval_batch_size": 1, "data.shapes_train": 1,
        "data.shapes_val": 1, "data.noise_train": 10, "augment.padding": 0, "augment.mixup": 0, "augment.cutmix": 0,
        "augment.mix_off_epochs": 0, "augment.color_jitter": 0, "augment.repeats": 1, "data.shuffle_buffer": 1,
    }  # fmt: skip
    probability = [
        "augment.hflip", "augment.vflip", "augment.erase", "augment.mix_prob", "augment.mix_switch", "model.drop_path",
        "optim.label_smoothing", "distill.alpha",
    ]  # fmt: skip
    check(config, at_least, probability, ["data.crop_pct", "distill.temperature", "data.classes", "data.train_samples"])
    validate_recipe(config)
    require(
        config.augment.mix_off_epochs <= config.total_epochs(), "augment.mix_off_epochs", config.augment.mix_off_epochs,
        f"at most all {config.total_epochs()} epochs",
    )  # fmt: skip
    require(min(config.data.std) > 0, "data.std", config.data.std, "above 0 for every channel")
    if config.data.dataset not in ("shapes", "noise") and not config.data.root:
        raise UserError(
            f"data.root is not set; data.dataset {config.data.dataset!r} needs to know where the images are"
        )
    sizes = config.data.progressive_sizes
    if sizes is not None:
        require(
            bool(sizes) and min(sizes) > 0 and sizes[-1] == config.data.image_size, "data.progressive_sizes", sizes,
            f"sizes above 0 that end with data.image_size = {config.data.image_size}",
        )  # fmt: skip
    require(
        config.optim.batch_size % config.augment.repeats == 0, "augment.repeats", config.augment.repeats,
        f"a divisor of optim.batch_size = {config.optim.batch_size}",
    )  # fmt: skip
    micro = config.optim.batch_size // config.optim.accumulation
    if (config.augment.mixup or config.augment.cutmix) and micro % 2:
        raise UserError(f"optim.batch_size / optim.accumulation is {micro}; mixup and cutmix need an even number")
