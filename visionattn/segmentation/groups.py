"""Parameter groups of a segmentor: layer-wise learning rates and what takes no weight decay."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from visionattn.training.errors import UserError

OPTIONS = {"layer_decay": 1.0, "head_lr_mult": 1.0}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor:
    """Groups by layer of the backbone, for every model that has timm's ``group_matcher``.

    mmsegmentation's own layer decay knows three architectures by name. Here the learning rate of backbone layer i of L
    (0 is the stem) is multiplied with ``layer_decay ** (L - i)``, and the heads have the full one. Biases, norms and
    what the model says take no weight decay.

    Args:
        optim_wrapper_cfg: the configuration of the optimiser and its wrapper.
        paramwise_cfg: layer_decay (in (0, 1], 1 for none), head_lr_mult (of everything that is not backbone).

    Raises:
        UserError: for an unknown or impossible option.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        given = dict(paramwise_cfg or {})
        unknown = sorted(given.keys() - OPTIONS.keys())
        if unknown:
            raise UserError(f"optim_wrapper.paramwise_cfg has no {unknown[0]!r}; it has {', '.join(OPTIONS)}")
        options = {**OPTIONS, **given}
        self.layer_decay, self.head_lr_mult = options["layer_decay"], options["head_lr_mult"]
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim_wrapper.paramwise_cfg.layer_decay is {self.layer_decay}; it must be in (0, 1]")
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimiser of a model, in its wrapper."""
        model = getattr(model, "module", model)  # inside DDP
        groups = self.groups(model)
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: params, lr and weight_decay of each."""
        lr, decay = self.optimizer["lr"], self.optimizer.get("weight_decay", 0.0)
        backbone = getattr(model, "backbone", None)
        layer: dict[str, int] = {}
        spared: set[str] = set()
        if hasattr(backbone, "no_weight_decay"):
            spared = {f"backbone.{name}" for name in backbone.no_weight_decay()}
        if self.layer_decay != 1:
            if not hasattr(backbone, "layers"):
                raise UserError("layer_decay needs a VisionAttnBackbone, which knows its layers")
            layer = {f"backbone.{name}": number for name, number in backbone.layers().items()}
        count = max(layer.values(), default=-1) + 1
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = self.layer_decay ** (count - layer[name]) if name in layer else 1.0
            if not name.startswith("backbone."):
                scale = self.head_lr_mult
            plain = parameter.ndim <= 1 or name in spared
            found.setdefault((lr * scale, 0.0 if plain else decay), []).append(parameter)
        total = sum(len(parameters) for parameters in found.values())
        print_log(
            f"optimiser: {total} parameters in {len(found)} groups, rates {min(found)[0]:.3g} to {max(found)[0]:.3g}",
            logger="current",
        )
        return [dict(params=params, lr=rate, weight_decay=wd) for (rate, wd), params in found.items()]
