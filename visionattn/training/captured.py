"""An optimiser's step as one CUDA graph: for optimisers that launch thousands of small kernels, such as Muon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class CapturedStep:
    """Clips gradients and takes the optimiser's step, from the second call on by replaying a CUDA graph.

    The first call runs eagerly, so that the optimiser sets up its state as it always does. The replays run the same
    kernels on the same numbers.

    Args:
        optimizer: its parameter groups say ``capturable``; learning rates may change from call to call, no other
            option may.
        parameters: what it steps, on one CUDA device; those with a gradient at the first call, which drops it, have one
            at every call.
        clip: the largest norm of the gradient, None to leave it as it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float | None):
        self.optimizer, self.parameters, self.clip = optimizer, list(parameters), clip
        device = self.parameters[0].device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._gradients: list[torch.Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._gradients:
            self.parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for rate, value in zip(self._rates, rates):
            rate.fill_(value)
        gradients = [parameter.grad for parameter in self.parameters]
        if not self._gradients:
            self._gradients = [torch.empty_like(gradient) for gradient in gradients]
            run = self._step
        else:
            run = self._capture if self._graph is None else self._graph.replay
        torch._foreach_copy_(self._gradients, gradients)
        for parameter, gradient in zip(self.parameters, self._gradients):
            parameter.grad = gradient
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate
        run()
        for group, value in zip(self.optimizer.param_groups, rates):
            group["lr"] = value  # as a number again: for the schedule, logs and checkpoints
        for parameter in self.parameters:
            parameter.grad = None

    def _step(self) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # thread_local: a loader's thread that pins memory meanwhile is none of this capture's business
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._step()
        self._graph.replay()
