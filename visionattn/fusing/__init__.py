"""Puts the kernels into models of timm that exist already: the same parameters, the same results, faster on a GPU.

:func:`fuse` changes a model in place, :func:`unfuse` gives it back as it was. What is fused is timm's own module with
another class (see :mod:`.recipe`), so that state dicts, optimisers, hooks, ``set_input_size`` and whatever else timm's
models can do go on working.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.fx
from torch import nn

from visionattn.fusing import davit, gcvit, halo, maxvit, swin
from visionattn.fusing.recipe import Recipe

RECIPES: tuple[Recipe, ...] = (
    *swin.RECIPES,
    *maxvit.RECIPES,
    *davit.RECIPES,
    *gcvit.RECIPES,
    *halo.RECIPES,
)
_ORIGINALS = {fused: original for recipe in RECIPES for original, fused in recipe.exchanges()}

# Attention that is no case for these kernels, by what its class is called in timm; the first match counts.
_OTHERS = (
    (r"\.swin_transformer_v2\.", "Swin v2's cosine attention, which none of the kernels computes"),
    (r"\.maxxvit\.TransformerBlock2d|\.maxxvit\.Attention2d", "it attends over the whole map, not within windows"),
    (r"\.maxxvit\.PartitionAttention2d", "it works on channels-first maps, a form that no model of timm uses"),
    (r"(WindowAttention|AttentionCl)$", "it stands outside of the block that cuts the windows"),
    (r"(Attention|Attn)(V\d)?$", "none of the kernels computes this kind of attention"),
)


class Fused(NamedTuple):
    """A module that runs our kernels."""

    name: str
    kind: str


class Left(NamedTuple):
    """A module with attention that stays timm's."""

    name: str
    kind: str  # of the module's class
    reason: str


class FuseReport(NamedTuple):
    """What :func:`fuse` did. Prints as a few lines; is true where anything is fused."""

    model: str
    fused: tuple[Fused, ...]
    left: tuple[Left, ...]

    def __bool__(self) -> bool:
        return bool(self.fused)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.fused)} modules with attention fused, {len(self.left)} left"]
        if not self.fused and not self.left:
            lines = [f"{self.model}: nothing to fuse; it holds no attention of timm's"]
        lines += [f"  fused {kind}: {_named(names)}" for kind, names in _grouped((f.kind, f.name) for f in self.fused)]
        left = _grouped(((one.kind, one.reason), one.name) for one in self.left)
        return "\n".join([*lines, *(f"  left {kind}: {_named(names)}: {why}" for (kind, why), names in left)])

    __repr__ = __str__


def fuse(model: nn.Module) -> FuseReport:
    """Lets the attention in a model of timm run our kernels, in place.

    Takes any module that holds, at any depth, timm's Swin (v1), MaxViT and MaxxViT, DaViT, GC ViT or halo attention:
    models, ``features_only`` models, detectors and segmentors around them, before or after ``DistributedDataParallel``
    and ``torch.compile`` (what was compiled before is compiled anew), before FSDP and any tracing or export. The model
    keeps its parameters, state dict (keys, values, order), outputs and gradients up to rounding, and every method; it
    trains, compiles, checkpoints gradients, copies, pickles and changes its input size as before. Maps that windows or
    blocks do not divide, which timm's MaxViT and HaloNet refuse, are taken too, as our own models take them. On a CPU,
    the kernels' references run.

    Hooks on an attention module go on firing; where timm calls it with windows [B * windows, N, C], they now see the
    map [B, H, W, C].

    Args:
        model: changed in place; modules that cannot be fused, and whole models that hold none, stay as they are.

    Returns a report of what is fused (also what was so before) and what is left, with the reason for each::

        report = visionattn.fuse(model)
        print(report)

    Raises:
        TypeError: if ``model`` is no ``torch.nn.Module``.
    """
    _require_module(model)
    fused, left, seen, swapped = [], [], set(), False
    for name, module in model.named_modules():
        if id(module) in seen:
            continue
        recipe = next((r for r in RECIPES if isinstance(module, r.original)), None)
        if recipe is None:
            if reason := _why_other(module):
                left.append(Left(name, type(module).__name__, reason))
                seen.update(map(id, module.modules()))
            continue
        # what is inside is spoken for
        seen.update(map(id, module.modules()))
        reason = None if isinstance(module, recipe.fused) else recipe.reason_against(module)
        if reason is not None:
            left.append(Left(name, type(module).__name__, reason))
            continue
        if type(module) is recipe.original:
            recipe.swap(module)
            swapped = True
        fused.append(Fused(name, recipe.kind))
    if swapped:
        _forget_graphs()
    return FuseReport(type(model).__name__, tuple(fused), tuple(left))


def unfuse(model: nn.Module) -> list[str]:
    """Undoes :func:`fuse`: every module of ``model`` is timm's again. Returns the names of those that were not.

    Raises:
        TypeError: if ``model`` is no ``torch.nn.Module``.
        ValueError: if a fused module was wrapped by class afterwards, as FSDP does; nothing is changed then.
    """
    _require_module(model)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, tuple(_ORIGINALS))]
    for name, module in found:
        if type(module) not in _ORIGINALS:
            raise ValueError(
                f"{name or 'model'} is of class {type(module).__name__}, made of a fused one after fuse; unfuse first"
            )
    for _, module in found:
        module.__class__ = _ORIGINALS[type(module)]
    if found:
        _forget_graphs()
    return [name for name, _ in found]


def _forget_graphs() -> None:
    """Has everything that torch.compile has compiled compiled anew: not every torch looks at the classes of modules."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _require_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _why_other(module: nn.Module) -> str | None:
    """Why attention of timm's that no recipe is for is left; None where ``module`` is nothing of the kind."""
    if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
        return "it is a graph already; fuse before a model is traced"
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    if not path.startswith("timm."):
        return None
    kind = r"(Attention|Attn)(V\d|2d|Cl)?$|TransformerBlock2d$"
    if not re.search(kind, path):
        return None
    return next((reason for pattern, reason in _OTHERS if re.search(pattern, path)), _OTHERS[-1][1])


def _grouped(pairs: Iterator[tuple]) -> list[tuple]:
    groups = defaultdict(list)
    for key, name in pairs:
        groups[key].append(name)
    return list(groups.items())


def _named(names: Sequence[str]) -> str:
    shown = [name or "(the model itself)" for name in names]
    return ", ".join(shown) if len(shown) <= 3 else f"{len(shown)} from {shown[0]} to {shown[-1]}"


__all__ = ["RECIPES", "FuseReport", "Fused", "Left", "fuse", "unfuse"]
