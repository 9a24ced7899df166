"""Batches from the host's memory to the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Upload:
    """Copies tensors to a device; to a GPU in a stream of its own, so that it computes the step before meanwhile.

    Args:
        device: where to; the copies overlap only if they come from pinned memory.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors on the device, ready for what is launched there from now on."""
        if self.stream is None:
            return [x.to(self.device) for x in tensors]
        with torch.cuda.stream(self.stream):
            moved = [x.to(self.device, non_blocking=True) for x in tensors]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for x in moved:
            x.record_stream(current)  # or the allocator would give its memory away to the next copy too early
        return moved
