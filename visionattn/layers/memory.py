"""The order of maps in memory."""

from __future__ import annotations

import torch

from visionattn.kernels._tracing import exporting


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] with the channels next to each other in memory, as convolutions are fastest.

    An exported graph is left as it is: asking how its maps lie would tie it to batches of more than one image.
    """
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x.contiguous(memory_format=torch.channels_last)
