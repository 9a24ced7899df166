"""The moving average equals timm's, step by step."""

import copy

import torch
from timm.utils import ModelEmaV3
from torch import nn

from visionattn.training.average import Ema


def test_equals_timms_average_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    ours, theirs = (make(copy.deepcopy(model), decay=0.9, use_warmup=True) for make in (Ema, ModelEmaV3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(5):
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        for average in (ours, theirs):
            average.update(model, step=step)
        if step == 2:  # as a resumed run does
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            ours.module.load_state_dict(copy.deepcopy(ours.module.state_dict()))
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name
    assert int(ours.module[1].num_batches_tracked) == 5
