"""The network of a run: fresh, with published weights, or fine-tuned from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import get_pretrained_cfg_value, load_state_dict
from torch import nn

from . import checkpoint
from .config import TrainConfig
from .errors import UserError, first_line
from .randomness import Purpose, seed_host, seed_of


def build(
    option: str, name: str, kwargs: dict[str, Any], classes: list[str], pretrained: bool, weights: str | None,
    **more: Any,
) -> nn.Module:  # fmt: skip
    """A model of timm's registry.

    Args:
        option: what messages call the option that names it.
        name: of the model.
        kwargs: arguments of ``timm.create_model``.
        classes: names of the classes.
        pretrained: take the published weights.
        weights: take these: a run's folder, a checkpoint folder or a file.
        more: further arguments, which are not the user's.

    Raises:
        UserError: unknown name or argument; no published weights; weights missing, damaged or of another model.
    """
    if not timm.is_model(name):
        family = name.split("_")[0]
        near = timm.list_models(f"{family}*")[:6] or timm.list_models("gna*")
        raise UserError(f"{option} is {name!r}, which timm does not know; for example: {', '.join(near)}")
    count, new_head = len(classes), False
    if weights is not None:
        state_dict, trained = read_weights(weights)
        count = len(trained) if trained is not None else classes_in(state_dict, name) or count
        new_head = count != len(classes) or trained not in (None, list(classes))
        overlay = dict(state_dict=state_dict, num_classes=count, hf_hub_id=None, source="")
        more, pretrained = more | dict(pretrained_cfg_overlay=overlay), True
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=count, **{**more, **kwargs})
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        if weights is not None:
            raise UserError(f"checkpoint {weights} does not fit {option} {name}: {first_line(error)}") from None
        raise UserError(f"model {name} cannot be built: {first_line(error)}") from None
    except Exception as error:  # without a network each library that fetches raises its own
        if not pretrained or weights is not None:
            raise
        raise UserError(f"the published weights of {name} cannot be fetched: {first_line(error)}") from None
    if new_head and not more.get("features_only"):
        model.reset_classifier(len(classes))
    return model


def classes_in(state_dict: dict[str, torch.Tensor], name: str) -> int | None:
    """Rows of the classifier in a file of weights, so that it loads strictly before it is replaced."""
    own = get_pretrained_cfg_value(name, "classifier") or ()
    for key in (*([own] if isinstance(own, str) else own), "head.fc", "head", "fc", "classifier"):
        if f"{key}.weight" in state_dict:
            return len(state_dict[f"{key}.weight"])
    return None


def read_weights(path: str) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """(state dict, names of the classes where the file says them) of a run, a checkpoint or a file of weights.

    Nothing that the file contains is run.

    Raises:
        UserError: where there is nothing, or it cannot be read.
    """
    file, classes = Path(path), None
    if not file.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if file.is_dir():
        folder = checkpoint.find(file)
        file = next(folder / name for name in (checkpoint.EMA, checkpoint.MODEL) if (folder / name).exists())
    try:
        state = file.with_name(checkpoint.STATE)
        if file.name in (checkpoint.EMA, checkpoint.MODEL) and state.exists():
            classes = json.loads(state.read_text(encoding="utf-8")).get("classes")
        return load_state_dict(str(file), weights_only=True), classes
    except Exception as error:  # each format's library has errors of its own
        reason = first_line(error)
        raise UserError(f"checkpoint {file} cannot be read: {reason}") from None


def create_model(config: TrainConfig, classes: list[str]) -> nn.Module:
    """The network to train; fresh weights come from the run's seed.

    Raises:
        UserError: see :func:`build`; or it has no gradient checkpointing.
    """
    options = config.model
    seed_host(seed_of(Purpose.WEIGHTS, config.run.seed))
    more = {} if options.drop_path is None else dict(drop_path_rate=options.drop_path)
    model = build("model.name", options.name, options.kwargs, classes, options.pretrained, options.checkpoint, **more)
    if options.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise UserError(f"model.grad_checkpointing is true, but {options.name} does not support it") from None
    return convert_sync_batchnorm(model) if config.run.sync_bn else model
