"""The options of ``visionattn validate``; what is null is taken from the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from visionattn.training.config import DataConfig
from visionattn.training.errors import UserError


@dataclass
class Pictures:
    """The images; null takes what the model's run used, or what its published weights recommend"""

    dataset: Literal["shapes", "folder", "tar", "wds", "hfds", "noise"] | None = None
    """Where images come from, as for visionattn train: 'folder' reads ROOT/SPLIT/CLASS/*.jpg, 'tar' ROOT/SPLIT.tar,
    'wds' WebDataset shards, 'hfds' a Hugging Face dataset; 'shapes' is generated."""
    root: str | None = None
    """The directory, address or dataset that holds the splits."""
    split: str | None = None
    """The split to evaluate on (null: the run's validation split, or val)."""
    image_size: int | None = None
    """Height and width in pixels of what the network sees."""
    mean: tuple[float, float, float] | None = None
    """Mean of the red, green and blue channels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the channels."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized."""
    crop_pct: float | None = None
    """The image's short side is resized to image_size / crop_pct and its centre is cropped."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """'center' crops the centre; 'squash' resizes both sides before that; 'border' resizes the long side and pads."""
    eval_batch_size: int | None = None
    """Images in one step."""
    workers: int | None = None
    """Worker processes for loading; 0 loads in the main process."""
    unreadable: Literal["stop", "skip"] | None = None
    """What an image that cannot be read does: 'stop' ends the evaluation, 'skip' names it and leaves it out."""
    input_key: str | None = None
    """For 'wds': extensions of image files; for 'hfds': the column of the images."""
    target_key: str | None = None
    """For 'wds': the field of the json file that holds the class; for 'hfds': the column of the classes."""
    classes: int | None = None
    """For 'wds': the number of classes."""
    shapes_val: int | None = None
    """For 'shapes': number of validation images."""
    shapes_seed: int | None = None
    """For 'shapes': the seed of the images."""

    def over(self, base: DataConfig) -> DataConfig:
        """A model's own options with those that are set here in their place."""
        mine = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        mine["val_split"] = mine.pop("split")
        return dataclasses.replace(base, **{key: value for key, value in mine.items() if value is not None})


@dataclass
class ValidateConfig:
    """The evaluation as a whole"""

    data: Pictures = field(default_factory=Pictures)
    """The images"""
    model: str | None = None
    """Architecture, for a bare file of weights."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model, for files and names; a run says its own."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Of a run: the averaged weights, the raw ones, or ('auto') averaged ones if it has them."""
    real_labels: str | None = None
    """JSON file of real labels for validation images of ImageNet: a list of 50,000 lists of classes, in the order of
    the files' numbers (arXiv 2006.07159), or for any data a mapping from file names to lists of classes."""
    bins: int = 15
    """Bins of confidence that calibration is measured in."""
    csv: str | None = None
    """Add a row a model to this CSV file."""
    reliability: str | None = None
    """Draw accuracy against confidence into this PNG file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; 'auto' takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast; 'auto' is bf16 on a GPU that has it, else fp32."""
    channels_last: bool = False
    """Keep images and convolution weights in channels-last order."""
    compile: bool = False
    """Compile the models with torch.compile; the first batch is then left out of the images a second."""
    threads: int | None = None
    """CPU threads of the main process; null leaves PyTorch's choice."""
    overwrite: bool = False
    """Let --reliability replace a picture that is there."""


def check(config: ValidateConfig) -> None:
    """Check what types alone do not say.

    Raises:
        UserError: naming the option, its value, and what is allowed.
    """
    data = config.data
    above_zero = {
        "bins": config.bins, "threads": config.threads, "data.image_size": data.image_size,
        "data.crop_pct": data.crop_pct, "data.eval_batch_size": data.eval_batch_size, "data.classes": data.classes,
        "data.shapes_val": data.shapes_val,
    }  # fmt: skip
    for key, value in above_zero.items():
        if value is not None and not value > 0:
            raise UserError(f"{key} is {value}; it must be above 0")
    if data.workers is not None and data.workers < 0:
        raise UserError(f"data.workers is {data.workers}; it must be at least 0")
    if data.std is not None and not min(data.std) > 0:
        raise UserError(f"data.std is {data.std}; it must be above 0 for every channel")
