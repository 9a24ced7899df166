"""A model as one graph, and the range of batches and image sizes that it serves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from visionattn.training.errors import UserError, first_line

LARGEST = 4096  # height and width that a graph is asked to serve
BATCHES = (1, 3)  # that a graph is verified with
Sizes = Literal["auto", "dynamic", "fixed"]
Range = tuple[int, int]


@dataclass(frozen=True)
class Graph:
    """What torch.export made of a model.

    Attributes:
        program: the graph, images [B, 3, H, W] -> logits.
        size: (height, width) that it was traced at.
        height, width: smallest and largest that it serves; equal where it is fixed.
        seconds: that tracing took.
    """

    program: ExportedProgram
    size: tuple[int, int]
    height: Range
    width: Range
    seconds: float

    @property
    def fixed(self) -> bool:
        """Whether it serves one size alone."""
        return self.height[0] == self.height[1] and self.width[0] == self.width[1]

    @property
    def has_our_ops(self) -> bool:
        """Whether attention ops of visionattn are nodes of the graph, as they are in models of ours."""
        return any(getattr(node.target, "namespace", "") == "visionattn" for node in self.program.graph.nodes)

    def __str__(self) -> str:
        if self.fixed:
            return f"any batch of {self.height[0]}x{self.width[0]} pixels"
        return f"any batch, heights {self.height[0]} to {self.height[1]}, widths {self.width[0]} to {self.width[1]}"

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """What to verify it with: two batch sizes, at its own size, at another, and at the smallest."""
        h, w = self.size
        sizes = [self.size, (_other(h, self.height, 0.6), _other(w, self.width, 1.15)), (self.height[0], self.width[0])]
        sizes = list(dict.fromkeys(sizes))
        pairs = [(batch, size) for size in sizes[:2] for batch in BATCHES] + [(2, size) for size in sizes[2:]]
        return [(batch, 3, *size) for batch, size in pairs]


def _other(own: int, limits: Range, factor: float) -> int:
    """Another number within the limits, if there is one."""
    tried = [min(limits[1], max(limits[0], round(own * f))) for f in (factor, 2 - factor)]
    return next((n for n in (*tried, *limits) if n != own), own)


def trace(model: nn.Module, size: tuple[int, int], sizes: Sizes = "auto", smallest: int = 32) -> Graph:
    """Trace a model as one graph.

    Under "auto" the graph serves as many sizes around ``size`` as the model's code lets it: where windows are clamped
    to maps that are smaller than they, for example, other sizes take another path through the code. The graph says
    which sizes these are.

    Args:
        model: in evaluation mode, on the CPU.
        size: (height, width) to trace at.
        sizes: "auto", "dynamic" (fail where it serves no other size) or "fixed".
        smallest: height and width from which it need not serve smaller ones.

    Raises:
        UserError: for a size that the model refuses, and a model that torch.export cannot trace.
    """
    x = torch.randn(2, 3, *size)
    try:
        with torch.inference_mode():
            model(x)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UserError(f"the model refuses images of {size[0]}x{size[1]} pixels: {first_line(error)[:300]}") from None
    batch = Dim.DYNAMIC(min=1, max=1 << 20)
    begun = time.perf_counter()
    if sizes != "fixed" and min(size) >= smallest:
        sides = {axis: Dim.AUTO(min=smallest, max=max(LARGEST, *size)) for axis in (2, 3)}
        try:
            graph = _graph(model, x, {0: batch, **sides}, size, begun)
        except Exception as error:  # torch's exporter fails with exceptions of many kinds
            if sizes == "dynamic":
                raise UserError(f"the model has no graph of dynamic sizes: {first_line(error)[:300]}") from None
        else:
            if graph is not None and not (graph.fixed and sizes == "dynamic"):
                return graph
    if sizes == "dynamic":
        raise UserError(
            f"the model takes another path through its code at every size around {size[0]}x{size[1]}, so that no graph "
            "serves several; give --size, or --sizes fixed"
        )
    try:
        return _graph(model, x, {0: batch}, size, begun)
    except Exception as error:
        raise UserError(f"torch.export cannot trace the model: {first_line(error)[:300]}") from None


def _graph(model: nn.Module, x: torch.Tensor, dims: dict, size: tuple[int, int], begun: float) -> Graph | None:
    with warnings.catch_warnings(), torch.no_grad(), _one_is_a_number():
        warnings.simplefilter("ignore")  # of torch's own passes
        program = torch.export.export(model, (x,), dynamic_shapes=(dims,))
    image = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    shape = image.meta["val"].shape
    ranges = [_range(program, n) for n in shape[2:]]
    if None in ranges:
        return None
    serves = _guards(program)
    if not serves(*size):
        raise ValueError(f"it is tied to batches like that of {len(x)} images which it was traced with")
    height = _narrowed(ranges[0], size[0], lambda n: serves(n, size[1]))
    width = _narrowed(ranges[1], size[1], lambda n: all(serves(m, n) for m in (size[0], *height)))
    return Graph(program, size, height, width, time.perf_counter() - begun)


def _one_is_a_number() -> AbstractContextManager:
    """Symbolic sizes are not asked whether they are 1: a graph traced where a map is one window serves larger ones."""
    from torch.fx.experimental import _config

    return _config.patch(backed_size_oblivious=True) if hasattr(_config, "backed_size_oblivious") else nullcontext()


def _range(program: ExportedProgram, n: int | torch.SymInt) -> Range | None:
    """What torch.export says that a dimension may be; None where it is tied to another."""
    if isinstance(n, int):
        return n, n
    found = program.range_constraints.get(n.node.expr)
    return None if found is None else (int(found.lower), int(found.upper))


def _guards(program: ExportedProgram) -> Callable[[int, int], bool]:
    """Whether the graph's own guards let a size pass, in any batch: they know more than its ranges do."""
    guards = getattr(program.module(), "_guards_fn", None)
    if guards is None:  # it is an internal of torch; the ranges have to do without it
        return lambda height, width: True

    def serves(height: int, width: int) -> bool:
        try:
            for batch in BATCHES:
                guards(torch.empty(batch, 3, height, width, device="meta"))
        except AssertionError:
            return False
        return True

    return serves


def _narrowed(limits: Range, own: int, serves: Callable[[int], bool]) -> Range:
    """The part of a range around ``own`` whose ends pass the guards."""
    ends = []
    for end in limits:
        inside, outside = own, end
        if serves(outside):
            inside = outside
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if serves(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]
