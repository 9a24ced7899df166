"""What tests of models share: figures of the official implementations and the rule that a port is judged by; graphs."""

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
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
        rule = self.doc["boosted"]["rule"] if boosted else "matches /$^/ is filled"
        tables = re.compile(re.search(r"matches /(.*)/ is filled", rule)[1])
        return {
            name: fill(name, shape, len(shape) >= 2 and bool(tables.search(name)))
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


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in standard deviations of the expected values."""
    return float((found.double() - expected.double()).abs().max() / expected.double().std())


def assert_agree(found: torch.Tensor, expected: torch.Tensor, what: str, exact: torch.Tensor | None = None) -> None:
    """The largest difference is at most TOLERANCE of the expected values' standard deviation.

    ``exact`` is the same in float64, for what is badly conditioned: there ``found`` may lie twice as far from it as
    ``expected`` does.
    """
    assert found.shape == expected.shape, what
    error, allowed = distance(found, expected), TOLERANCE
    if exact is not None:
        error, allowed = distance(found, exact), max(TOLERANCE, 2 * distance(expected, exact))
    assert error <= allowed, f"{what}: differs by {error:.2e} standard deviations, of {allowed:.2e} allowed"


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


def compile_whole(model: torch.nn.Module, x: torch.Tensor, **options) -> list[list[torch.Tensor]]:
    """Outputs and gradients of all parameters, eager and under `torch.compile` without graph breaks."""
    torch._dynamo.reset()
    results = []
    for forward in (model, torch.compile(model, fullgraph=True, **options)):
        model.zero_grad()
        out = forward(x)
        outs = out if isinstance(out, list) else [out]
        sum(y.square().mean() for y in outs).backward()
        results.append([*outs, *(p.grad.clone() for p in model.parameters())])
    return results


def check_onnx(
    model: torch.nn.Module, path: Path, smallest: int, traced: Sequence[int], shapes: Sequence[Sequence[int]]
) -> None:
    """Any batch, height and width from `smallest` on, traced at one shape; the exported program is checked too."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    from torch.export import Dim

    side = Dim.DYNAMIC(min=smallest, max=4096)
    program = torch.export.export(model, (torch.randn(traced),), dynamic_shapes=({0: Dim.DYNAMIC, 2: side, 3: side},))
    torch.onnx.export(program, f=str(path), dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(program.module()(x), expected)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(out) - expected).abs().max() <= 1e-5


@pytest.fixture
def compiled_whole() -> Callable:
    return compile_whole


@pytest.fixture
def onnx_equal() -> Callable:
    return check_onnx
