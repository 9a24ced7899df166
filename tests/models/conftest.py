"""Figures of the official implementations, and the rule that a port is judged by."""

import json
import math
import re
import zlib
from pathlib import Path

import pytest
import torch

TOLERANCE = 1e-4  # of a result's standard deviation; the official models' own noise in float32 is below 5e-6


def fill(name: str, shape, full_scale: bool = False) -> torch.Tensor:
    """The value that a parameter or a statistic of this name has in the golden models, by its name alone."""
    t = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return t.abs() + 0.5
    if name.endswith("running_mean"):
        return 0.1 * t
    if len(shape) <= 1:
        return 1 + 0.1 * t if name.endswith("weight") else 0.1 * t
    return t if full_scale else t / math.sqrt(math.prod(shape[1:]))


class Golden:
    """An official model's state dict under a deterministic fill, and the logits that it gives."""

    def __init__(self, name: str) -> None:
        self.doc = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())

    def state_dict(self, boosted: bool) -> dict[str, torch.Tensor]:
        """Under official names; ``boosted`` fills position tables at full scale, where a wrong sign or order shows."""
        tables = re.compile(re.search(r"matches /(.*)/ is filled", self.doc["boosted"]["rule"])[1])
        return {
            name: fill(name, shape, boosted and len(shape) >= 2 and bool(tables.search(name)))
            for name, shape, *_ in self.doc["state_dict"]
            if name not in self.doc["not_filled"]
        }

    def buffers(self) -> dict[str, torch.Tensor]:
        """What else an official file holds: constants that a filter has to drop."""
        shapes = {name: shape for name, shape, *_ in self.doc["state_dict"]}
        return {name: torch.zeros(shapes[name]) for name in self.doc["not_filled"]}

    def check(self, model: torch.nn.Module, boosted: bool) -> None:
        """Every case's logits agree."""
        for case in [self.doc["boosted"]["case"]] if boosted else self.doc["cases"]:
            seed = torch.Generator().manual_seed(case["input"]["seed"])
            with torch.no_grad():
                found = model(torch.randn(case["input"]["shape"], generator=seed))
            expected = torch.tensor(case["logits"]).view(case["output_shape"])
            assert_agree(found, expected, self.doc["name"])


def assert_agree(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """The largest difference is at most TOLERANCE of the expected values' standard deviation."""
    assert found.shape == expected.shape, what
    error = (found.double() - expected.double()).abs().max() / expected.double().std()
    assert error <= TOLERANCE, f"{what}: differs by {error:.2e} standard deviations"


@pytest.fixture
def golden():
    """golden(name): the figures of one official model."""
    return Golden


@pytest.fixture
def agree():
    return assert_agree


@pytest.fixture
def filled():
    """fill(name, shape, full_scale=False) -> tensor."""
    return fill
