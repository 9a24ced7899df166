"""What counts as equal."""

import pytest
import torch
from torch import nn

from visionattn.export.verify import Differs, verify


def test_differences_are_judged_by_the_largest_logit_below_one() -> None:
    model, lines = nn.Flatten(), []
    checks = verify(model, lambda x: model(x) + 5e-5, [(2, 3, 4, 4)], 1e-4, lines.append)
    assert checks[0].difference == pytest.approx(5e-5, rel=0.1) and len(lines) == 1 and "2x3x4x4" in lines[0]
    with pytest.raises(Differs, match="differs from PyTorch by 2.0e-04 on images 2x3x4x4; 1.0e-04 is allowed"):
        verify(model, lambda x: model(x) + 2e-4, [(2, 3, 4, 4)], 1e-4, lines.append)

    def small(x: torch.Tensor) -> torch.Tensor:
        return 1e-3 * x.flatten(1).clamp(-1, 1)

    with pytest.raises(Differs, match="1.0e-07 is allowed"):
        verify(small, lambda x: small(x) + 1e-6, [(2, 3, 4, 4)], 1e-4, lines.append)


def test_nan_other_shapes_and_failures_are_differences() -> None:
    model = nn.Flatten()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel\nmore")

    for exported, message in (
        (lambda x: model(x) * float("nan"), "differs from PyTorch by nan"),
        (lambda x: model(x)[:1], r"gives \(1, 48\) for images \(2, 3, 4, 4\), the model \(2, 48\)"),
        (fail, "fails on images 2x3x4x4: no kernel$"),
    ):
        with pytest.raises(Differs, match=message):
            verify(model, exported, [(2, 3, 4, 4)], 1e-4, print)
