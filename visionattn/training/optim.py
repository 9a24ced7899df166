"""The optimiser of a run, from timm's."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from .errors import UserError, first_line
from .recipe import Recipe


def captures(config: Recipe, device: torch.device) -> bool:
    """Whether steps are replayed as a CUDA graph."""
    return config.optim.cuda_graph and device.type == "cuda"


def create_optimizer(config: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that ``config.optim`` names, over the model's parameter groups.

    Raises:
        UserError: unknown name or argument.
    """
    options = config.optim
    more = dict(options.kwargs)
    if options.eps is not None:
        more["eps"] = options.eps
    if options.betas is not None:
        more["betas"] = tuple(options.betas)
    device = next(model.parameters()).device
    if captures(config, device):
        more["capturable"] = True
    if device.type == "cuda" and options.name in ("adam", "adamw"):
        more.setdefault("fused", True)  # one pass over the weights instead of ten
    try:
        return create_optimizer_v2(
            model, options.name, lr=config.peak_lr(), weight_decay=options.weight_decay, momentum=options.momentum,
            layer_decay=options.layer_decay, **more)  # fmt: skip
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"optim.name is {options.name!r}: {first_line(error)}") from None


def peak_group_lr(optimizer: torch.optim.Optimizer) -> float:
    """The current learning rate of the layers whose rate is not scaled down."""
    return max(group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups)
