"""The moving average of a model's weights."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn

from .sharded import local


class Ema(ModelEmaV3):
    """timm's average, with the tensors looked up once: collecting them costs more than averaging small models does.

    The parameters and buffers of the model must stay the same objects, as they do under optimisers and
    ``load_state_dict``.
    """

    _pairs: tuple[list[torch.Tensor], ...] | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self._pairs is None:
            states = zip(self.module.state_dict().values(), model.state_dict().values())
            both = [tuple(map(local, pair)) for pair in states]
            floating = [pair for pair in both if pair[0].is_floating_point()]
            others = [pair for pair in both if not pair[0].is_floating_point()]
            self._pairs = tuple([pair[i] for pair in group] for group in (floating, others) for i in (0, 1))
        averages, weights, copies, originals = self._pairs
        torch._foreach_lerp_(averages, weights, weight=1.0 - decay)
        if copies:
            torch._foreach_copy_(copies, originals)
