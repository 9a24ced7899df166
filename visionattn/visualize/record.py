"""Which layers of a model attend, to what, and with which tensors: one forward pass, watched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from visionattn.kernels._register import FUNCTIONS

from .weights import Call, Layer


class _Watch(TorchFunctionMode):
    """Notes the calls of attention ops, under the innermost module that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[str, tuple[int, ...]]] = []  # modules on their way, and the shapes that they got
        self.found: dict[str, list[Call]] = {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        call, (name, shape) = None, self.running[-1] if self.running else ("", ())
        op = getattr(function, "__name__", "")
        if op in FUNCTIONS and op != "depthwise_conv":  # no attention
            call = _kernel_call(FUNCTIONS[op].resolve(*args, **kwargs), op, shape)
        elif function is scaled_dot_product_attention:
            call = _global_call(shape, *args, **kwargs)
        if call is not None:
            self.found.setdefault(name, []).append(call)
        return function(*args, **kwargs)

    def enter(self, name: str, module: nn.Module, args: tuple) -> None:
        """A module begins."""
        self.running.append((name, tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()))

    def leave(self, *_: Any) -> None:
        """The innermost module ends."""
        self.running.pop()


def _first_image(x: Any) -> Any:
    """A tensor's first image, a copy of its own; numbers in float64. Tables have no images and stay whole."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach().cpu().clone()
    return x.double() if x.is_floating_point() else x


def _kernel_call(resolved: tuple, function: str, shape: tuple[int, ...]) -> Call:
    op = FUNCTIONS[function].op
    q, k, v = resolved[:3]
    many = 3 + len(op.extras)
    extras = {
        name: x[:1] if isinstance(x, Tensor) and name in ("routes", "sampling", "residual") else x
        for name, x in zip(op.extras, resolved[3:many])
    }
    parameters = resolved[many:]
    if op.name == "linear_attention":
        size = tuple(parameters[0])
    else:
        size = shape[1:3] if len(shape) == 4 else tuple(k.shape[1:3])
        if any(n > m for n, m in zip(size, k.shape[1:3])):  # the module got another layout than the kernels'
            size = tuple(k.shape[1:3])
    tensors = tuple(_first_image(x[:1]) for x in (q, k, v))
    return Call(op.name, tensors, {name: _first_image(x) for name, x in extras.items()}, parameters, size)


def _global_call(shape: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Call | None:
    """PyTorch's attention of all positions of a map [B, H, W, C] to all; None for any other use of it."""
    if rest or set(options) - {"scale"} or len(shape) != 4 or q.ndim != 4 or q.shape != k.shape:
        return None
    if shape[1] * shape[2] != q.shape[2]:
        return None
    size = shape[1:3]
    tensors = tuple(_first_image(x[:1].transpose(1, 2).unflatten(1, size)) for x in (q, k, v))
    return Call("global_attention", tensors, {}, (options.get("scale"),), size)


def attending_layers(model: nn.Module, image: Tensor) -> list[Layer]:
    """The layers of a model that attend, in the order in which they run.

    Args:
        model: any module whose layers call :mod:`visionattn.kernels` (or, on maps, PyTorch's attention); it is run in
            evaluation mode and left as it was.
        image: [1, channels, H, W], float, on the model's device.

    Returns their attention over this image; empty for a model without any.
    """
    watch, training, hooks = _Watch(), model.training, []
    try:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(_enter(watch, name)))
            hooks.append(module.register_forward_hook(watch.leave, always_call=True))
        model.eval()
        with torch.no_grad(), watch:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return [Layer(name, tuple(calls)) for name, calls in watch.found.items()]


def _enter(watch: _Watch, name: str):
    return lambda module, args: watch.enter(name, module, args)


def find(layers: Iterable[Layer], wanted: str) -> Layer:
    """The layer of a name, of the beginning of one that no other has, or of a number counted from 0 (negative: from
    the end).

    Raises:
        ValueError: where none or several are meant; the message lists what there is.
    """
    layers = list(layers)
    names = [layer.name for layer in layers]
    if not layers:
        raise ValueError("this model has no layer that attends over a map")
    if wanted.lstrip("-").isdigit():
        if not -len(layers) <= int(wanted) < len(layers):
            raise ValueError(f"layer must be a number from {-len(layers)} to {len(layers) - 1}, got {wanted}")
        return layers[int(wanted)]
    meant = [name for name in names if name == wanted] or [n for n in names if n.startswith(wanted.rstrip(".") + ".")]
    if len(meant) != 1:
        what = "unknown" if not meant else f"{len(meant)} layers"
        raise ValueError(f"layer {wanted!r} is {what}; there are {', '.join(names)}")
    return layers[names.index(meant[0])]
