"""The order of maps in memory."""

from __future__ import annotations

import torch

from visionattn.kernels._tracing import exporting


def plain(x: torch.Tensor) -> torch.Tensor:
    """``x``, and in an exported graph a contiguous copy of it.

    What comes next may ask how a tensor lies in memory, to choose between a view and a copy. In a graph the answer
    would tie it to batches of more than one image, or to maps of more than one position or window; of a plain copy it
    is known for all.
    """
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] with the channels next to each other in memory, as convolutions are fastest; see :func:`plain`."""
    return plain(x) if exporting() else x.contiguous(memory_format=torch.channels_last)


def nchw(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] for convolutions, a view; see :func:`plain`."""
    return plain(x.permute(0, 3, 1, 2))
