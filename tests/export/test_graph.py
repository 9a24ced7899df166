"""Which sizes a graph serves, as far as the guards of its trace say; what it is verified with."""

import pytest
import torch
from torch import nn

from visionattn.export.graph import Graph, trace
from visionattn.training.errors import UserError


class Windows(nn.Module):
    """Takes another path through its code for every number of windows, and one for all widths."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = (x.shape[2] + 7) // 8
        return self.head((x * (1.0 if number == 6 else 2.0)).mean((2, 3)))


class Fixed(Windows):
    """Takes one size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (40, 56):
            raise ValueError("takes images of 40x56 pixels")
        return self.head(x.mean((2, 3)))


def test_a_graph_serves_the_sizes_that_pass_its_guards() -> None:
    graph = trace(Windows().eval(), (48, 64))
    assert graph.height == (41, 48) and graph.width == (32, 4096) and not graph.fixed
    assert str(graph) == "any batch, heights 41 to 48, widths 32 to 4096"
    model = graph.program.module()
    for batch, height, width in ((1, 41, 33), (5, 48, 300)):
        assert model(torch.randn(batch, 3, height, width)).shape == (batch, 4)
    with pytest.raises(AssertionError):
        model(torch.randn(2, 3, 40, 64))


def test_a_model_of_one_size_is_traced_for_that_one_and_dynamic_sizes_are_refused() -> None:
    model = Fixed().eval()
    graph = trace(model, (40, 56))
    assert graph.fixed and (graph.height, graph.width) == ((40, 40), (56, 56))
    assert graph.program.module()(torch.randn(7, 3, 40, 56)).shape == (7, 4)
    with pytest.raises(UserError, match="no graph serves several|no graph of dynamic sizes"):
        trace(model, (40, 56), "dynamic")
    with pytest.raises(UserError, match="refuses images of 64x64 pixels: takes images of 40x56 pixels"):
        trace(model, (64, 64))


def test_fixed_sizes_are_fixed_when_asked_for() -> None:
    graph = trace(Windows().eval(), (48, 64), "fixed")
    assert graph.fixed and str(graph) == "any batch of 48x64 pixels"


@pytest.mark.parametrize("height, width, number", [((41, 48), (32, 4096), 5), ((224, 224), (224, 224), 2)])
def test_verification_takes_two_batches_at_two_sizes_and_the_smallest(height, width, number) -> None:
    graph = Graph(None, (48, 64) if number == 5 else (224, 224), height, width, 0.0)
    shapes = graph.shapes()
    assert len(set(shapes)) == len(shapes) == number and {shape[0] for shape in shapes} >= {1, 3}
    assert all(height[0] <= h <= height[1] and width[0] <= w <= width[1] for _, _, h, w in shapes)
    if number == 5:
        assert len({shape[2:] for shape in shapes}) == 3 and shapes[-1][2:] == (41, 32)
