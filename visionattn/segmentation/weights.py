"""Feature pyramids of timm's registry: how they are made, filled with weights, and divided into layers.

timm wraps a model that only gives features in one of several ways, which rename its parameters. Here a whole classifier
is made beside it where one is needed, and names are compared without the punctuation that the wrappers change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

import visionattn  # noqa: F401  registers the models
from visionattn.training.errors import UserError, first_line
from visionattn.training.network import build, classes_in, read_weights


@dataclass(frozen=True)
class Loaded:
    """What came out of handing a checkpoint's weights to a pyramid.

    Attributes:
        source: where the weights are from.
        missing: parameters and buffers of the pyramid that the checkpoint does not have.
        unexpected: those of the checkpoint, under the classifier's names, that the pyramid does not have.
    """

    source: str
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        def say(names: list[str]) -> str:
            return f"{len(names)} ({', '.join(names)})" if names else "none"

        return f"weights of {self.source}; missing keys: {say(self.missing)}; unexpected keys: {say(self.unexpected)}"


def create_features(name: str, kwargs: dict[str, Any], out_indices: tuple[int, ...] | None) -> nn.Module:
    """A pyramid with fresh weights.

    Args:
        name: of a model in timm's registry.
        kwargs: arguments of ``timm.create_model``.
        out_indices: which maps, negative from the end; None for the last four, or all where there are fewer.

    Raises:
        UserError: for a name that timm does not know, a model that gives no features, or wrong arguments.
    """
    if not timm.is_model(name):
        known = timm.list_models(f"{name.split('_')[0]}*")[:6] or timm.list_models("gna*")
        raise UserError(f"backbone name is {name!r}, which timm does not know; for example: {', '.join(known)}")
    try:
        if out_indices is None:
            with torch.device("meta"):  # only to count
                maps = len(timm.create_model(name, features_only=True, **kwargs).feature_info)
            out_indices = tuple(range(maps))[-4:]
        return timm.create_model(name, features_only=True, out_indices=tuple(out_indices), **kwargs)
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError, AttributeError, IndexError) as error:
        reason = first_line(error)
        raise UserError(f"backbone {name} cannot be built: {reason}") from None


def load_weights(
    features: nn.Module, name: str, kwargs: dict[str, Any], checkpoint: str | None, pretrained: bool
) -> Loaded:
    """Fill a pyramid with the weights of a classifier.

    The classifier is made and loaded by timm's own path, strictly: what does not fit it is refused, official layouts
    are translated and relative tables resized by the model's filter.

    Args:
        features: of :func:`create_features`.
        name, kwargs: what they were made of.
        checkpoint: folder of a training run, of one of its checkpoints, or a file of weights, an official one too.
        pretrained: take the weights that timm's configuration names instead.

    Raises:
        UserError: where there is nothing, it cannot be read, or is of another model.
    """
    if checkpoint is not None:
        state, classes = read_weights(checkpoint)
        rows = len(classes) if classes is not None else classes_in(state, name) or 0
        names = classes if classes is not None else [str(i) for i in range(rows)]
        whole = build("model.backbone.name", name, kwargs, names, False, checkpoint)
        source = f"{checkpoint} ({rows} classes)"
    else:
        whole, source = _published(name, kwargs, pretrained), f"{name}, published"
    own = whole.state_dict()
    by_name = {_bare(key): value for key, value in own.items()}
    wanted = {key: _bare(key) for key in features.state_dict()}
    missing = [key for key, bare in wanted.items() if bare not in by_name]
    unexpected = [key for key in own if _bare(key) not in set(wanted.values())]
    features.load_state_dict({key: by_name[bare] for key, bare in wanted.items() if bare in by_name}, strict=False)
    return Loaded(source, missing, unexpected)


def _published(name: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    if not pretrained:
        raise ValueError("give a checkpoint, or pretrained=True")
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # the hub's, the network's and timm's own
        reason = first_line(error)
        raise UserError(f"published weights of {name} cannot be had: {reason}") from None


def layers_of(features: nn.Module, name: str, kwargs: dict[str, Any], coarse: bool) -> dict[str, int]:
    """Which layer each parameter of a pyramid is in: 0 is the stem, then block by block, or stage by stage (coarse).

    As timm's ``group_matcher`` of the whole model says.

    Raises:
        UserError: where the model has none.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, **kwargs)
    if not hasattr(whole, "group_matcher"):
        raise UserError(f"backbone {name} does not say which layers it has, so they cannot be told apart")
    groups = group_parameters(whole, whole.group_matcher(coarse=coarse))
    layer = {_bare(key): number for number, keys in groups.items() for key in keys}
    return {key: layer[_bare(key)] for key, _ in features.named_parameters()}


def without_decay(features: nn.Module, name: str, kwargs: dict[str, Any]) -> set[str]:
    """Parameters of a pyramid that take no weight decay, as the whole model says."""
    with torch.device("meta"):
        whole = timm.create_model(name, **kwargs)
    said = {_bare(key) for key in whole.no_weight_decay()} if hasattr(whole, "no_weight_decay") else set()
    return {key for key, _ in features.named_parameters() if _bare(key) in said}


def _bare(key: str) -> str:
    """timm's wrappers put ``model.`` before names, or underscores for some of the dots."""
    return key.removeprefix("model.").replace(".", "_")
