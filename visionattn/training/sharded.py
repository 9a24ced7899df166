"""Weights, gradients, averages and the optimiser's state shared out over the processes of a run (PyTorch's FSDP2).

Checkpoints hold whole tensors, whatever a run shares out: so a run may be resumed by any number of processes, in either
mode of ``run.parallel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .errors import UserError

ELEMENTWISE = ("adam", "nadam", "sgd", "momentum", "lion", "rmsprop")  # what their names begin with


def require_elementwise(name: str) -> None:
    """Refuse optimisers that look at whole matrices, of which a process has only rows.

    Raises:
        UserError: for any optimiser that is not known to treat every number for itself.
    """
    if not name.lower().startswith(ELEMENTWISE):
        known = ", ".join(ELEMENTWISE)
        raise UserError(f"optim.name is {name!r}; run.parallel fsdp2 allows {known} and their variants")


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of every stage: what is gathered, and compiled, for itself."""
    for name, module in model.named_modules():
        if name.split(".")[-2:-1] == ["blocks"]:
            yield module


def shard(model: nn.Module, device: torch.device, world: int) -> None:
    """Share a model's weights out by rows, those of each block together; its modules stay what they are."""
    mesh = init_device_mesh(device.type, (world,))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP refuses channels_last, which convolutions do without
    for block in list(blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(nest: Any) -> Any:
    """A nest of dictionaries and lists with shared tensors put together, on the CPU; all processes must call it."""
    if isinstance(nest, DTensor):
        return nest.full_tensor().cpu()
    if isinstance(nest, dict):
        return {key: whole(value) for key, value in nest.items()}
    return [whole(value) for value in nest] if isinstance(nest, list) else nest


def _part(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, shared out as ``like`` is; every process has the same tensor."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of whole tensors as ``model``, which may be shared out, loads it."""
    own = model.state_dict()
    return {name: _part(value, own[name]) if name in own else value for name, value in state_dict.items()}


def optimizer_parts(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of whole tensors as ``optimizer``, whose parameters may be shared out, loads it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: _part(x, parameters[index]) if isinstance(x, Tensor) else x for name, x in entry.items()}
        for index, entry in state_dict["state"].items()
    }
    return dict(state_dict, state=state)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
