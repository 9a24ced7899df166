"""The order of maps in memory."""

from __future__ import annotations

import torch

from visionattn.kernels._tracing import exporting


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] with the channels next to each other in memory, as convolutions are fastest.

    An exported graph gets a plain copy: asking how its maps lie would tie it to batches of more than one image, and to
    maps of more than one position.
    """
    if exporting():
        return x.clone(memory_format=torch.contiguous_format)
    return x.contiguous(memory_format=torch.channels_last)


def nchw(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] for convolutions: a view, and in an exported graph a plain copy."""
    x = x.permute(0, 3, 1, 2)
    return channels_last(x) if exporting() else x
