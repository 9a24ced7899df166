"""Any feature pyramid of timm's registry as a backbone of mmsegmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from timm.layers import Format, LayerNorm2d
from torch import nn

from visionattn.training.errors import UserError

from .weights import Loaded, create_features, layers_of, load_weights, without_decay


@MODELS.register_module()
class VisionAttnBackbone(BaseModule):
    """A pyramid by its name in timm's registry: one of this project, or any model of timm that gives features.

    Args:
        name: of the model, such as "gna_tiny" or "resnet50".
        checkpoint: folder of a run of ``visionattn train``, of one of its checkpoints, or a file of weights of this
            model, an official one too. Read when the weights are initialised.
        pretrained: take the published weights instead.
        drop_path: rate of stochastic depth; the model's own if None.
        frozen_stages: -1 trains everything, 0 freezes the stem, n also the first n stages: no gradients, no updates of
            running statistics, no dropout.
        out_norm: a LayerNorm of its own on each map, which residual streams without a final norm want. Its weights are
            never in a checkpoint of a classifier.
        out_indices: which maps of the model, negative from the end; None for the last four.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
        compile: run the model, and the heads of a :class:`.segmentor.Segmentor`, under ``torch.compile`` while
            training, where sizes are fixed; evaluation, whose sizes vary, does without.
        compile_mode: that of ``torch.compile``.
        kwargs: further arguments of ``timm.create_model``.

    Shapes: [B, 3, H, W] -> maps [B, C, H', W'], fine to coarse; H and W may be any that the model takes (those of this
    project take all).

    Raises:
        UserError: for an unknown name, wrong arguments, or a model that gives no features.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        pretrained: bool = False,
        drop_path: float | None = None,
        frozen_stages: int = -1,
        out_norm: bool = True,
        out_indices: tuple[int, ...] | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        compile_mode: str = "default",
        kwargs: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if checkpoint is not None and pretrained:
            raise UserError("backbone: give either checkpoint or pretrained, not both")
        self.name, self.checkpoint, self.pretrained = name, checkpoint, pretrained
        self.kwargs = dict(kwargs or {})
        rate = {} if drop_path is None else {"drop_path_rate": drop_path}
        self.features = create_features(name, {**rate, **self.kwargs}, out_indices)
        self.channels: list[int] = list(self.features.feature_info.channels())
        self.norms = nn.ModuleList([LayerNorm2d(dim) if out_norm else nn.Identity() for dim in self.channels])
        self.last_axis = getattr(self.features, "output_fmt", Format.NCHW) == Format.NHWC
        self.loaded: Loaded | None = None
        if grad_checkpointing:
            if not hasattr(self.features, "set_grad_checkpointing"):
                raise UserError(f"backbone.grad_checkpointing is True, but {name} does not support it")
            self.features.set_grad_checkpointing(True)
        self._freeze(frozen_stages)
        self.compiles, self.compile_mode, self._compiled = compile, compile_mode, None

    def _freeze(self, stages: int) -> None:
        self.frozen: list[nn.Module] = []
        if stages < 0:
            return
        layer = layers_of(self.features, self.name, self.kwargs, coarse=True)
        last = max(layer.values())
        if stages > last:
            raise UserError(f"backbone.frozen_stages is {stages}; {self.name} has stages 1 to {last}")
        for key, parameter in self.features.named_parameters():
            if layer[key] <= stages:
                parameter.requires_grad_(False)
        for module in self.features.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                self.frozen.append(module)

    def init_weights(self) -> None:
        """Loads the weights that were asked for, and says which keys were missing and unexpected.

        Not called for the modules inside: timm has drawn their weights.
        """
        self._is_init = True
        if self.checkpoint is None and not self.pretrained:
            return
        self.loaded = load_weights(self.features, self.name, self.kwargs, self.checkpoint, self.pretrained)
        print_log(f"backbone {self.name}: {self.loaded}", logger="current")

    def train(self, mode: bool = True) -> VisionAttnBackbone:
        """As everywhere; frozen stages stay as in evaluation."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def layers(self) -> dict[str, int]:
        """The layer of each parameter of the pyramid, from 0, as timm's group_matcher says; the norms have none."""
        inside = layers_of(self.features, self.name, self.kwargs, coarse=False)
        return {f"features.{key}": layer for key, layer in inside.items()}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, as the model says."""
        return {f"features.{key}" for key in without_decay(self.features, self.name, self.kwargs)}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, 3, H, W] -> maps [B, C, H', W']."""
        maps = self._run()(x)
        if self.last_axis:
            maps = [value.permute(0, 3, 1, 2) for value in maps]
        return tuple(norm(value) for norm, value in zip(self.norms, maps))

    def _run(self) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        if not (self.compiles and self.training):
            return self.features
        if self._compiled is None:
            self._compiled = torch.compile(self.features.forward, mode=self.compile_mode, dynamic=False)
        return self._compiled
