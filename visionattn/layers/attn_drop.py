"""The warning of every attention layer that is built with dropout of its attention probabilities."""

from __future__ import annotations

import warnings

_warned = False


def warn_attn_drop(rate: float) -> None:
    """Says, once, that training with ``attn_drop`` above 0 leaves the fused kernels."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"attn_drop={rate}: no fused kernel drops attention probabilities, so training gathers every window in "
            "plain PyTorch, which is slow and takes much memory. attn_drop=0 gives the fused kernels.",
            stacklevel=3,
        )
