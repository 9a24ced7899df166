"""NAT and DiNAT with NATTEN's op in the place of ours, the peer of whole models.

NATTEN's kernels have no relative bias, so ``natten/nat_tiny`` is the model without it; ``unbiased/nat_tiny`` is the
same model on our op. Every layer runs NATTEN's fastest configuration for its shape, as in the kernels' tables.
"""

import gc
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from visionattn.layers import NeighborhoodAttention

from .cases import Case
from .natten_peer import Natten

NATTEN, UNBIASED = "natten/", "unbiased/"
SEARCH_S = 10.0  # for the fastest configurations of one shape

# By (case, dtype): NATTEN's keyword arguments for inference and for training, and how they read.
_found: dict[tuple[Case, torch.dtype], tuple[tuple[dict, str], tuple[dict, str]]] = {}


def split(name: str) -> tuple[str, str]:
    """``natten/nat_tiny`` as (``natten/``, ``nat_tiny``); any other name has an empty prefix."""
    prefix = next((p for p in (NATTEN, UNBIASED) if name.startswith(p)), "")
    return prefix, name.removeprefix(prefix)


def known() -> list[str]:
    """The models that both prefixes take."""
    return timm.list_models(module="nat")


class NattenAttention(nn.Module):
    """``layer`` with its own projections around ``natten.na2d``, fed as NATTEN's own module feeds it.

    ``options`` are keyword arguments of that op: a backend and its tiles, NATTEN's own choice where empty.

    Shapes: [B, H, W, dim] -> [B, H, W, dim].

    Raises:
        ValueError: for a layer with a relative bias.
    """

    def __init__(self, layer: NeighborhoodAttention, options: dict | None = None) -> None:
        super().__init__()
        if layer.rpb is not None:
            raise ValueError("layer must have no relative bias, which NATTEN's kernels cannot add")
        self.qkv, self.proj, self.proj_drop = layer.qkv, layer.proj, layer.proj_drop
        self.heads, self.head_dim = layer.num_heads, layer.head_dim
        self.neighborhood = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "stride")}
        self.options = options or {}

    def forward(self, x: Tensor) -> Tensor:
        import natten

        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(3)
        out = natten.na2d(q, k, v, **self.neighborhood, **self.options)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def case(self, x: Tensor) -> Case:
        """The problem that input ``x`` poses to the op."""
        sides = {name: set(pair) for name, pair in self.neighborhood.items()}
        if any(len(pair) > 1 for pair in sides.values()):
            raise ValueError(f"the neighborhood must be square to be searched for, got {self.neighborhood}")
        kernel, dilation, stride = (pair.pop() for pair in sides.values())
        return Case(*x.shape[:3], self.heads, self.head_dim, kernel, dilation, stride)


def replace(model: nn.Module) -> nn.Module:
    """Puts a :class:`NattenAttention` in the place of every neighborhood attention of ``model``."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, NeighborhoodAttention):
            model.set_submodule(name, NattenAttention(layer))
    return model


def tune(
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype,
    training: bool,
    search_s: float = SEARCH_S,
    search: Callable[[Case, torch.dtype, torch.device, float], tuple] | None = None,
) -> str:
    """Gives every layer NATTEN's fastest configuration for the shape that it has with ``images``.

    Args:
        model: one that :func:`replace` has been through, on the images' device.
        dtype: in which the op will run.
        training: whether the forward and backward together should be fastest, or the forward alone.
        search_s: seconds for each shape that was not searched for before in this process.
        search: ``search(case, dtype, device, search_s)`` finds the options and their text, (forward, both).

    Returns what was chosen, a part for each shape.
    """
    cases: dict[nn.Module, Case] = {}
    layers = [layer for layer in model.modules() if isinstance(layer, NattenAttention)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: cases.__setitem__(layer, layer.case(*inputs)))
        for layer in layers
    ]
    mixed = torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32)
    try:
        with torch.no_grad(), mixed:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    chosen: dict[Case, str] = {}
    for layer, case in cases.items():
        if (case, dtype) not in _found:
            _found[case, dtype] = (search or _search)(case, dtype, images.device, search_s)
        layer.options, chosen[case] = _found[case, dtype][training]
    gc.collect()  # what the search held must not count as the model's
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    return "; ".join(f"{case.name}: {text}" for case, text in chosen.items())


def _search(case: Case, dtype: torch.dtype, device: torch.device, search_s: float) -> tuple:
    q, k, v = (torch.randn(case.shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    peer = Natten(case, q, k, v, torch.randn_like(q))
    found = (one and one.config for one in peer.best(search_s, rep_ms=20.0))
    return tuple((peer.arguments(one), str(one)) if one else ({}, "its own choice") for one in found)
