"""One exported graph of a layer serves maps of one window, smaller ones and larger ones, and batches of one."""

import pytest
import torch
from torch import nn

from visionattn.export.graph import trace
from visionattn.layers import HaloAttention, LinearAttention, VariedWindowAttention, WindowAttention
from visionattn.layers.embed import PatchStem

DIM, WINDOW = 16, 5
LAYERS = {
    "shifted windows": lambda: WindowAttention(DIM, 2, WINDOW, shift=2),
    "windows shifted along one axis, padding masked": lambda: WindowAttention(
        DIM, 2, (WINDOW, 4), shift=(0, 3), attend_padding=False
    ),
    "windows that share queries": lambda: Shared("block"),
    "grids that share queries": lambda: Shared("grid"),
    "varied windows": lambda: VariedWindowAttention(DIM, 2, WINDOW),
    "halos": lambda: HaloAttention(DIM, num_heads=2, block_size=WINDOW, halo_size=1),
    "linear": lambda: LinearAttention(DIM, 2),
}
QUICK = ("windows shifted along one axis, padding masked", "windows that share queries")


class Shared(nn.Module):
    def __init__(self, partition: str) -> None:
        super().__init__()
        self.attn = WindowAttention(DIM, 2, WINDOW, partition=partition, attend_padding=False, shared_query=True)
        self.query = nn.Parameter(torch.randn(WINDOW, WINDOW, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x.mean((1, 2), keepdim=True) + self.query)


class OnImages(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer = PatchStem(3, DIM, 2), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.stem(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_one_graph_serves_every_map_and_batch(name: str) -> None:
    torch.manual_seed(0)
    model = OnImages(LAYERS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # places and tables that start at zero do something
            parameter.add_(0.2 * torch.randn_like(parameter))
    graph = trace(model, (2 * WINDOW, 2 * WINDOW), "dynamic", smallest=3)
    assert (graph.height, graph.width) == ((3, 4096), (3, 4096))
    served = graph.program.module()
    for batch, *size in ((1, 10, 10), (3, 10, 10), (1, 3, 4), (1, 7, 25), (2, 12, 5), (1, 20, 30), (1, 21, 24)):
        x = torch.randn(batch, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(served(x), model(x))
