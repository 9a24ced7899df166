"""The options of a detector's run. The defaults are a whole recipe: FCOS and gna_nano on the generated `shapes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from visionattn.training.errors import UserError
from visionattn.training.recipe import (
    EmaConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    ScheduleConfig,
    check,
    require,
    validate_recipe,
)


@dataclass
class DetectorConfig:
    """The network"""

    detector: Literal["fcos", "retinanet", "fasterrcnn", "maskrcnn"] = "fcos"
    """What finds objects on the pyramid: FCOS (arXiv 1904.01355), RetinaNet (1708.02002), Faster R-CNN (1506.01497),
    Mask R-CNN (1703.06870), as torchvision builds them."""
    name: str = "gna_nano"
    """The backbone: any model that timm.create_model knows with features_only; importing visionattn adds ours."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model for the backbone, for example {stem_stride: 2}."""
    pretrained: bool = False
    """Start from the published weights of the backbone."""
    backbone_checkpoint: str | None = None
    """Start from these weights of the backbone: the run or checkpoint of a classifier or detector, or a file that the
    model's checkpoint filter understands."""
    checkpoint: str | None = None
    """Start from the weights of a detector's run or checkpoint, the averaged ones if it has them. The layers that tell
    categories apart are new unless it was trained on the same ones."""
    frozen_stages: int = 0
    """The backbone's stem and its first so many stages keep their weights; 0 trains all."""
    drop_path: float | None = None
    """Stochastic depth in the backbone: the rate of its last block; null leaves the model's."""
    grad_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: less memory, more time."""
    fpn_channels: int = 64
    """Channels of the feature pyramid network; 256 in the papers."""
    head_convs: int = 2
    """For 'fcos': convolutions before each of its outputs; 4 in the paper."""
    detector_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of torchvision's class of the detector, for example {box_detections_per_img: 300}."""


@dataclass
class DetDataConfig:
    """The images"""

    dataset: Literal["shapes", "coco"] = "shapes"
    """'shapes' is generated from a seed; 'coco' reads images and COCO's json files."""
    root: str | None = None
    """For 'coco': the directory that the four options below start from."""
    train_images: str = "train2017"
    """For 'coco': directory of the training images."""
    train_annotations: str = "annotations/instances_train2017.json"
    """For 'coco': their annotations."""
    val_images: str = "val2017"
    """For 'coco': directory of the validation images."""
    val_annotations: str = "annotations/instances_val2017.json"
    """For 'coco': their annotations."""
    short_side: int = 96
    """Evaluation: images are resized to this short side, 800 for COCO."""
    long_side: int = 96
    """Images are resized so that their long side stays within this, 1333 for COCO."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What an image that is missing or cannot be read does: 'stop' ends the run; 'skip' names it, trains on the next
    image instead, and leaves it out of evaluations."""
    group_aspect: bool = True
    """All images of a step lie, or all stand: less padding."""
    workers: int = 0
    """Worker processes for loading and augmenting; 0 does it in the main process."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channels in [0, 1], subtracted from the images."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels, which the images are divided by."""
    eval_batch_size: int = 25
    """Images in one evaluation step on each process."""
    shapes_train: int = 1600
    """For 'shapes': number of training images."""
    shapes_val: int = 300
    """For 'shapes': number of validation images."""
    shapes_size: int = 96
    """For 'shapes': height and width of the images in pixels."""
    shapes_seed: int = 0
    """For 'shapes': the seed of the images."""


@dataclass
class DetAugmentConfig:
    """Augmentation of the training images"""

    resize: Literal["short_sides", "jitter"] = "short_sides"
    """'short_sides': to a short side drawn from short_sides, the long one within data.long_side; 'jitter': large-scale
    jitter, a random scale and a crop of a fixed size, padded where the image is smaller (arXiv 2012.07177)."""
    short_sides: list[int] = field(default_factory=list)
    """For 'short_sides': those to draw from; empty takes data.short_side."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """For 'jitter': range of the scale, 1 being the image as large as fits the crop."""
    crop: int = 1024
    """For 'jitter': height and width of the crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""


@dataclass
class DetOptimConfig(OptimConfig):
    """The optimiser"""

    lr: float = 2e-3
    """Peak learning rate, for a step of lr_batch images."""
    batch_size: int = 8
    """Images in one optimiser step, over all processes and accumulation steps: more processes keep the recipe."""


@dataclass
class DetScheduleConfig(ScheduleConfig):
    """Length and learning-rate schedule"""

    epochs: int = 8
    """Epochs of the schedule, warm-up included."""


@dataclass
class DetRunConfig(RunConfig):
    """How and where the run runs"""

    eval_every: int = 4
    """Epochs between evaluations; the last epoch is always evaluated."""
    drawings: int = 6
    """Validation images that are drawn with what is there and what was found, into predictions.png at the end."""


@dataclass
class DetConfig(Recipe):
    """The run as a whole"""

    model: DetectorConfig = field(default_factory=DetectorConfig)
    """The network"""
    data: DetDataConfig = field(default_factory=DetDataConfig)
    """The images"""
    augment: DetAugmentConfig = field(default_factory=DetAugmentConfig)
    """Augmentation of the training images"""
    optim: DetOptimConfig = field(default_factory=DetOptimConfig)
    """The optimiser"""
    schedule: DetScheduleConfig = field(default_factory=DetScheduleConfig)
    """Length and learning-rate schedule"""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Moving average of the weights"""
    run: DetRunConfig = field(default_factory=DetRunConfig)
    """How and where the run runs"""
    resume: str = "none"
    """'none' starts anew; 'auto' continues the run folder's last checkpoint, or starts if there is none; a path
    continues that checkpoint (its folder, or a run folder)."""

    def label(self) -> str:
        """What a run's folder is called unless the user names it."""
        return f"{self.data.dataset}-{self.model.detector}-{self.model.name}"


def validate(config: DetConfig) -> None:
    """Check what types alone do not say.

    Raises:
        UserError: naming the option, its value, and what is allowed.
    """
    at_least = {
        "data.short_side": 32, "data.long_side": 32, "data.workers": 0, "data.eval_batch_size": 1,
        "data.shapes_train": 1, "data.shapes_val": 1, "data.shapes_size": 32, "augment.crop": 32,
        "model.frozen_stages": 0, "model.fpn_channels": 1, "model.head_convs": 1, "run.drawings": 0,
    }  # fmt: skip
    check(config, at_least, ["augment.hflip", "model.drop_path"])
    validate_recipe(config)
    data, augment = config.data, config.augment
    require(data.long_side >= data.short_side, "data.long_side", data.long_side, f"at least {data.short_side}")
    require(min(data.std) > 0, "data.std", data.std, "above 0 for every channel")
    require(0 < augment.jitter[0] <= augment.jitter[1], "augment.jitter", augment.jitter, "rising and above 0")
    sides = augment.short_sides
    require(all(32 <= side <= data.long_side for side in sides), "augment.short_sides", sides, "32 to data.long_side")
    if data.dataset == "coco" and not data.root:
        raise UserError("data.root is not set; data.dataset 'coco' needs to know where the images are")
    if config.model.detector == "fcos":
        require(config.model.fpn_channels in range(64, 4096, 32), "model.fpn_channels", config.model.fpn_channels,
                "64, 96 or another multiple of 32, as FCOS norms 32 groups")  # fmt: skip
    if config.optim.cuda_graph:
        raise UserError("optim.cuda_graph is true; a detector's losses may leave weights without a gradient, use false")
