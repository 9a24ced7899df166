"""Trained classifiers for the tools that use them: a run, a checkpoint, an exported folder, a file, or a timm name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from . import checkpoint
from .config import DataConfig
from .errors import UserError, first_line
from .network import build, classes_in, read_weights

CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Choice:
    """What a user says of a model beside its name or place.

    Attributes:
        model: architecture of a bare file of weights.
        kwargs: further arguments of ``timm.create_model`` for it.
        weights: of a run: its averaged weights, the raw ones, or ("auto") averaged ones where there are some.
        untrained: fresh weights, for a name.
        classes: number of classes of a fresh model.
        image_size: height and width of the input; the model's own if None.
    """

    model: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: Literal["auto", "ema", "raw"] = "auto"
    untrained: bool = False
    classes: int | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model comes from; known to be there, but not read yet.

    Attributes:
        source: what the user called it.
        kind: "run", "folder" (that timm reads), "file", "published" or "untrained".
        name: architecture; None where only the folder says it.
        path: the file of weights, or the folder.
        state: what a run's checkpoint says.
    """

    source: str
    kind: Literal["run", "folder", "file", "published", "untrained"]
    name: str | None
    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """Which weights: ema, raw, file, published or untrained."""
        if self.kind == "run":
            return "ema" if self.path.name == checkpoint.EMA else "raw"
        return "file" if self.kind == "folder" else self.kind


@dataclass
class Trained:
    """A model in evaluation mode, and what is known of it.

    Attributes:
        origin: where it comes from.
        name: architecture, as timm knows it.
        kwargs: arguments that it was made with beside its number of classes.
        model: on the CPU, float32.
        classes: names of its classes, "0", "1", ... where nothing says them.
        certain: whether whoever trained it said those names.
        descriptions: of classes whose names say little, by name.
        data: how images become its input; of a run also where that run's images are.
    """

    origin: Origin
    name: str
    kwargs: dict[str, Any]
    model: nn.Module
    classes: list[str]
    certain: bool
    descriptions: dict[str, str]
    data: DataConfig

    def title(self, index: int) -> str:
        """What to show people of a class: the first word of its description, or its name."""
        name = self.classes[index]
        return self.descriptions.get(name, name).split(",")[0]


def locate(source: str, choice: Choice, detectors: bool = False) -> Origin:
    """What a user means by ``source``: a run's folder, a checkpoint, an exported folder, a file, or a timm name.

    Args:
        source: what the user called it.
        choice: what the user says besides.
        detectors: let runs of detectors pass too, whose state has "detector".

    Raises:
        UserError: where there is no such thing, or it lacks what it takes to be read.
    """
    path = Path(source)
    if choice.untrained and not timm.is_model(source):
        raise UserError(f"{source!r} is no model that timm knows, and only such names can be untrained")
    if path.is_dir() and not choice.untrained:
        return _folder(source, path, choice, detectors)
    if path.is_file():
        if path.name in (checkpoint.EMA, checkpoint.MODEL) and path.with_name(checkpoint.STATE).is_file():
            state = read_state(path.parent)
            _agree(source, state, choice, detectors)
            return Origin(source, "run", state["model"], path, state)
        if path.name == checkpoint.MODEL and path.with_name("config.json").is_file() and choice.model is None:
            return _folder(source, path.parent, choice, detectors)
        _only_runs(source, choice)
        if choice.model is None:
            raise UserError(f"{source} is a file of weights; --model must say which model they are of")
        require_known(choice.model)
        return Origin(source, "file", choice.model, path)
    if not timm.is_model(source):
        if "/" in source or path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".onnx"):
            raise UserError(f"{source} does not exist")
        raise UserError(f"{source!r} is no path, and no model that timm knows; for example: {', '.join(_near(source))}")
    _only_runs(source, choice)
    if choice.untrained:
        return Origin(source, "untrained", source)
    config = get_pretrained_cfg(source)
    if config is None or not config.has_weights:
        raise UserError(f"{source} has no published weights; give a run or a file of weights instead of its name")
    return Origin(source, "published", source)


def _folder(source: str, path: Path, choice: Choice, detectors: bool) -> Origin:
    try:
        folder = checkpoint.find(path)
    except UserError:
        if not (path / "config.json").is_file():
            raise UserError(
                f"{source} is no run, no checkpoint and no exported model (no {checkpoint.STATE} or config.json in it)"
            ) from None
        _only_runs(source, choice)
        return Origin(source, "folder", None, path)
    state = read_state(folder)
    _agree(source, state, choice, detectors)
    averaged = (folder / checkpoint.EMA).is_file()
    if choice.weights == "ema" and not averaged:
        raise UserError(f"{source} keeps no averaged weights (no {checkpoint.EMA} in {folder}); raw ones are there")
    use_average = averaged and choice.weights != "raw"
    return Origin(source, "run", state["model"], folder / (checkpoint.EMA if use_average else checkpoint.MODEL), state)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint folder says of itself.

    Raises:
        UserError: where its file is damaged or says no model.
    """
    file = folder / checkpoint.STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("it holds no options")
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {file} cannot be read: {error}") from None
    return state


def _agree(source: str, state: dict[str, Any], choice: Choice, detectors: bool) -> None:
    wrong = next((key for key in ("model", "classes", "config") if key not in state), None)
    if wrong:
        raise UserError(f"{source} is no checkpoint of an image classifier: its {checkpoint.STATE} has no {wrong!r}")
    if "detector" in state and not detectors:
        raise UserError(f"{source} is a detector; only visionattn predict takes those")
    require_known(state["model"])
    if choice.model not in (None, state["model"]):
        raise UserError(f"{source} was trained with model {state['model']}, but --model is {choice.model}")
    if choice.kwargs:
        raise UserError(f"{source} says its model's arguments itself; --kwargs are for a file or a name")


def _only_runs(source: str, choice: Choice) -> None:
    if choice.weights != "auto":
        raise UserError(f"--weights {choice.weights} chooses between those of a run, and {source} is none")


def require_known(name: str) -> None:
    """Raises UserError for a name that timm does not know."""
    if not timm.is_model(name):
        raise UserError(f"model {name!r} is unknown to timm; for example: {', '.join(_near(name))}")


def _near(name: str) -> list[str]:
    return timm.list_models(f"{name.split('_')[0]}*")[:6] or timm.list_models("gna*")


def load(origin: Origin, choice: Choice) -> Trained:
    """Read the weights and make the model. Nothing that a file contains is run.

    Raises:
        UserError: weights damaged, of another model, or out of reach; naming the file.
    """
    certain, kwargs = True, dict(choice.kwargs)
    if origin.kind == "run":
        name, kwargs, classes = origin.name, dict(origin.state.get("kwargs") or {}), list(origin.state["classes"])
        model = build("model", name, kwargs, classes, False, str(origin.path))
        data = _data_of_run(origin)
        return Trained(origin, name, kwargs, model.eval(), classes, True, {}, data)
    if choice.image_size and origin.name and get_pretrained_cfg(origin.name).fixed_input_size:
        kwargs.setdefault("img_size", choice.image_size)
    if origin.kind == "file":
        count = classes_in(read_weights(str(origin.path))[0], origin.name) or 1000
        model = build("--model", origin.name, kwargs, [str(i) for i in range(count)], False, str(origin.path))
    else:
        model = _by_timm(origin, kwargs, choice)
    config = model.pretrained_cfg
    classes, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if not classes or len(classes) != model.num_classes:
        classes, descriptions, certain = _imagenet(model, origin.kind)
    kwargs = dict(getattr(model, "_model_args", kwargs)) if origin.kind == "folder" else kwargs
    name = config["architecture"] if origin.name is None else origin.name
    data = _data_of_model(origin.source, model)
    return Trained(origin, name, kwargs, model.eval(), list(classes), certain, dict(descriptions), data)


def _by_timm(origin: Origin, kwargs: dict[str, Any], choice: Choice) -> nn.Module:
    try:
        if origin.kind == "folder":
            return timm.create_model(f"local-dir:{origin.path}", pretrained=True, **kwargs)
        if origin.kind == "untrained":
            return timm.create_model(origin.name, num_classes=choice.classes, **kwargs)
        return timm.create_model(origin.name, pretrained=True, **kwargs)
    except Exception as error:  # config.json, weights and downloads each fail with errors of their own library
        reason = first_line(error)
        what = f"the published weights of {origin.source}" if origin.kind == "published" else f"model {origin.source}"
        raise UserError(f"{what} cannot be loaded: {reason}") from None


def _imagenet(model: nn.Module, kind: str) -> tuple[list[str], dict[str, str], bool]:
    """Names of the classes of published weights; those of a bare file are a guess by their number."""
    subset = infer_imagenet_subset(model)
    if subset is None or kind == "untrained":
        return [str(i) for i in range(model.num_classes)], {}, False
    info = ImageNetInfo(subset)
    return info.label_names(), info.label_descriptions(as_dict=True), kind == "published"


def _data_of_run(origin: Origin) -> DataConfig:
    known = {item.name for item in dataclasses.fields(DataConfig)}
    found = origin.state["config"].get("data")
    if not isinstance(found, dict):
        raise UserError(f"{origin.source} does not say its images: its {checkpoint.STATE} has no config.data")
    return DataConfig(**{key: value for key, value in found.items() if key in known})


def _data_of_model(source: str, model: nn.Module) -> DataConfig:
    found = resolve_model_data_config(model, use_test_size=True)
    channels, height, width = found["input_size"]
    if channels != 3:
        raise UserError(f"{source} takes images of {channels} channels; only 3 (red, green, blue) are supported")
    return DataConfig(
        dataset="folder", image_size=max(height, width), mean=tuple(found["mean"]), std=tuple(found["std"]),
        interpolation=found["interpolation"] or "bilinear", crop_pct=found["crop_pct"],
        crop_mode=found.get("crop_mode") or "center")  # fmt: skip


class Running(NamedTuple):
    """Where and how to compute; ``precision`` is "fp32", "bf16" or "fp16"."""

    device: torch.device
    precision: str
    autocast: torch.autocast


def running(device: str, precision: str) -> Running:
    """Where to compute, and the autocast to do it under.

    Args:
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".

    Raises:
        UserError: for what this machine does not have.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no usable GPU; cpu or auto is allowed here")
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if where.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and where.type == "cpu":
        raise UserError("--precision is fp16, which needs a GPU; on a CPU fp32 and bf16 are allowed")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    autocast = torch.autocast(where.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    return Running(where, precision, autocast)
