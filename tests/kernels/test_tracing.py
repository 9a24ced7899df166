"""Export and compilation are told apart, whatever torch's version says of them."""

import torch

from visionattn.kernels._tracing import exporting


class _Answer(torch.nn.Module):
    def forward(self, x):
        return x + 1 if exporting() else x - 1


def test_only_export_is_export():
    x, model = torch.zeros(2), _Answer()
    torch._dynamo.reset()
    assert (model(x) == -1).all()
    assert (torch.compile(model, backend="eager", fullgraph=True)(x) == -1).all()
    assert (torch.export.export(model, (x,)).module()(x) == 1).all()
