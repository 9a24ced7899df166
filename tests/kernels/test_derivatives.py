"""Derivatives of every kind, of every op: through inputs made of one another, forward mode, torch.func's transforms."""
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from visionattn import kernels


def _close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(found, wanted, strict=True):
        y = y.to(x)
        assert y.norm() > 0 and (x - y).norm() <= 1e-4 * y.norm()


def _reference(case: tuple, function: Callable, *tensors: Tensor) -> list[Tensor]:
    """`function` of the op, the same arguments on the CPU in double precision."""
    return [x.detach() for x in function(case.call, *[x.detach().cpu().double() for x in tensors])]


def _tangents(call: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.func.jvp(call, tensors, tuple(torch.linspace(-1, 1, x.numel()).to(x).view(x.shape) for x in tensors))


def _dual_tangents(call: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, torch.linspace(-1, 1, x.numel()).to(x).view(x.shape)) for x in tensors]
        return tuple(forward_ad.unpack_dual(call(*duals)))


def _gradients(call: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.func.grad(lambda *x: call(*x).square().sum(), tuple(range(len(tensors))))(*tensors)


def _mapped(call: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients of each sample by itself."""
    images, others = torch.stack((tensors[0], 2 * tensors[0])), tensors[1:]
    return (torch.func.vmap(torch.func.grad(lambda x: call(x, *others).square().sum()))(images),)


@pytest.mark.parametrize("function", [_tangents, _dual_tangents, _gradients, _mapped])
def test_transforms_of_functions(smallest: tuple, function: Callable, route: str) -> None:
    tensors = [x.detach() for x in smallest.draw(route, 0)]
    wanted = _reference(smallest, function, *tensors)
    for _ in range(3):            # recordings are made and played of calls without transforms alone
        smallest.call(*tensors)
        _close(list(function(smallest.call, *tensors)), wanted)


def test_second_derivatives(smallest: tuple, route: str) -> None:
    def function(call: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
        tensors = [x.clone().requires_grad_() for x in tensors]
        first = torch.autograd.grad(call(*tensors).square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), tensors)
        return *first, *second

    tensors = [x.detach() for x in smallest.draw(route, 0)]
    _close([x.detach() for x in function(smallest.call, *tensors)], _reference(smallest, function, *tensors))


ATTENTION = [functools.partial(kernels.neighborhood_attention, kernel_size=2),
             functools.partial(kernels.window_attention, window_size=2), kernels.linear_attention]


@pytest.mark.parametrize("again", [False, True], ids=["once", "create_graph"])
@pytest.mark.parametrize("call", ATTENTION, ids=lambda call: getattr(call, "func", call).__name__)
def test_inputs_made_of_one_another_get_their_own_gradients(call: Callable, again: bool, route: str) -> None:
    x = torch.randn(1, 2, 4, 1, 16, device=route)

    def gradients(x: Tensor, make: Callable) -> list[Tensor]:
        x = x.clone().requires_grad_()
        out = call(*make(x)).square().sum()
        return [y.detach() for y in torch.autograd.grad(out, x, create_graph=again)]

    for make in (lambda x: (x, x, x), lambda x: (x, 2 * x, x), lambda x: ((q := x.sin()), q.cos(), q)):
        _close(gradients(x, make), gradients(x.cpu().double(), make))
