"""Whether what was exported gives what the model gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionattn.training.errors import first_line


class Differs(Exception):
    """What was exported is not the model; the message says how."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        shape: of the images.
        difference: the largest between two logits.
        scale: the largest logit.
    """

    shape: tuple[int, ...]
    difference: float
    scale: float

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}: largest difference {self.difference:.1e} (logits up to {self.scale:.2g})"


@torch.no_grad()
def verify(
    model: nn.Module, exported: Callable[[Tensor], Tensor], shapes: Sequence[tuple[int, ...]], tolerance: float,
    say: Callable[[str], None],
) -> list[Check]:  # fmt: skip
    """Compare on images of random pixels.

    Args:
        model: what must come out.
        exported: images -> logits.
        shapes: of the images.
        tolerance: the largest difference allowed; times the largest logit where that is below 1.
        say: gets a line for each comparison.

    Raises:
        Differs: where a difference is larger, or the exported model fails.
    """
    checks = []
    for number, shape in enumerate(shapes):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        expected = model(x)
        try:
            found = exported(x)
        except Exception as error:  # a runtime's errors are of its own kind
            reason = first_line(error)
            raise Differs(f"fails on images {'x'.join(map(str, shape))}: {reason}") from None
        if found.shape != expected.shape:
            raise Differs(f"gives {tuple(found.shape)} for images {tuple(shape)}, the model {tuple(expected.shape)}")
        check = Check(shape, float((found - expected).abs().max()), float(expected.abs().max()))
        say(f"  {check}")
        allowed = tolerance * min(1.0, check.scale)
        if not check.difference <= allowed:
            images, by = "x".join(map(str, shape)), f"{check.difference:.1e}"
            raise Differs(f"differs from PyTorch by {by} on images {images}; {allowed:.1e} is allowed")
        checks.append(check)
    return checks
