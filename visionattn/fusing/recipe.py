"""What it takes to put a kernel into one of timm's modules, and what stands in the way.

Nothing is built or copied: a module gets another class, an heir of its own that overrides one method. Parameters,
buffers, children, their names and order, hooks, and all other methods stay what they are, and giving the first class
back undoes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from visionattn.kernels._dispatch import Explanation


class Part(NamedTuple):
    """A child that changes its class together with its parent."""

    name: str
    original: type[nn.Module]
    fused: type[nn.Module]


class Recipe(NamedTuple):
    """How one kind of timm's modules is fused.

    ``asks`` gives :func:`visionattn.kernels.explain`'s answer to the call that the module would make, for one window
    or so; it may raise what the call would raise.
    """

    kind: str
    original: type[nn.Module]
    fused: type[nn.Module]
    asks: Callable[[nn.Module], Explanation]
    parts: tuple[Part, ...] = ()
    bypassed: tuple[str, ...] = ()  # submodules that the fused forward never calls, dotted
    refuses: Callable[[nn.Module], str | None] = lambda module: None

    def exchanges(self) -> list[tuple[type[nn.Module], type[nn.Module]]]:
        """Every (timm's class, ours)."""
        return [(self.original, self.fused), *((part.original, part.fused) for part in self.parts)]

    def reason_against(self, module: nn.Module) -> str | None:
        """Why ``module``, an instance of ``original``, has to stay as it is; None if it may be fused."""
        for name, found, wanted in [("", module, self.original)] + [
            (f" of {part.name}", getattr(module, part.name, None), part.original) for part in self.parts
        ]:
            if type(found) is not wanted:
                return f"the class{name} is {type(found).__name__}, not timm's {wanted.__name__}, and may do otherwise"
            if own := sorted(n for n in vars(found) if callable(getattr(wanted, n, None))):
                return f"{own[0]}{name} has been replaced on this instance"
        dropout = next((d for d in map(_dropout, self._attentions(module)) if d is not None), None)
        if dropout:
            return dropout
        for path in self.bypassed:
            if _has_hooks(module, path):
                return f"{path} has hooks, and a fused kernel never calls it"
        return self.refuses(module) or self._kernel_refuses(module)

    def swap(self, module: nn.Module) -> None:
        """Gives ``module`` and its parts our classes."""
        for part in self.parts:
            getattr(module, part.name).__class__ = part.fused
        module.__class__ = self.fused

    def _attentions(self, module: nn.Module) -> list[nn.Module]:
        return [getattr(module, part.name) for part in self.parts] or [module]

    def _kernel_refuses(self, module: nn.Module) -> str | None:
        try:
            fused = self.asks(module).verdicts[0]
        except (TypeError, ValueError) as error:
            return str(error)
        # off a GPU every call goes to the reference, whatever the module; where it will run is not known yet
        return fused.reason if _where(module)["device"].type == "cuda" else None


def _dropout(attn: nn.Module) -> str | None:
    drop = getattr(attn, "attn_drop", None)
    if drop is None or isinstance(drop, nn.Identity) or (isinstance(drop, nn.Dropout) and drop.p == 0):
        return None
    rate = f"{drop.p:g}" if isinstance(drop, nn.Dropout) else type(drop).__name__
    return f"attn_drop is {rate}: no fused kernel drops attention probabilities"


def _has_hooks(module: nn.Module, path: str) -> bool:
    try:
        found = module.get_submodule(path)
    except AttributeError:  # None, or not there in this variant
        return False
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(one, kind, None) for one in found.modules() for kind in kinds)


def _where(module: nn.Module) -> dict:
    p = next(module.parameters())
    return {"device": p.device, "dtype": p.dtype}


def empty_like(module: nn.Module, *shape: int) -> torch.Tensor:
    """An empty tensor as ``module``'s parameters, to ask the kernels about."""
    return torch.empty(shape, **_where(module))
