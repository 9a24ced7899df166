"""The optimiser's step in a CUDA graph."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from visionattn.training.captured import CapturedStep

pytestmark = pytest.mark.gpu
OPTIMIZERS = {"muon": {}, "adamw": {"fused": True}, "nadamw": {}}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 64), nn.LayerNorm(64)).cuda()


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, step, first: int, last: int) -> None:
    for i in range(first, last):
        torch.manual_seed(i)
        optimizer.param_groups[0]["lr"] = 1e-3 * (i + 1)
        model(torch.randn(4, 3, 8, 8, device="cuda")).square().sum().backward()
        step()
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replayed_steps_have_the_bits_of_eager_ones_and_follow_the_learning_rate(name):
    models = [_model() for _ in range(2)]
    ends = []
    for model, capture in zip(models, (True, False), strict=True):
        optimizer = create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.05, capturable=True, **OPTIMIZERS[name])
        step = CapturedStep(optimizer, list(model.parameters()), 1.0)
        if not capture:
            step._capture = step._step
        _train(model, optimizer, step, 0, 6)
        assert (step._graph is not None) == capture
        ends.append(optimizer.state_dict())
    for name_, x in models[0].state_dict().items():
        assert torch.equal(x, models[1].state_dict()[name_]), name_
    for index, state in ends[0]["state"].items():
        for key, x in state.items():
            if isinstance(x, torch.Tensor):
                assert torch.equal(x, ends[1]["state"][index][key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_taken_up_between_has_the_bits_of_one_that_went_through(name):
    def start(model):
        optimizer = create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.05, capturable=True, **OPTIMIZERS[name])
        return optimizer, CapturedStep(optimizer, list(model.parameters()), 1.0)

    model = _model()
    optimizer, step = start(model)
    _train(model, optimizer, step, 0, 4)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    _train(model, optimizer, step, 4, 8)
    other = _model()
    other.load_state_dict(weights)
    optimizer, step = start(other)
    optimizer.load_state_dict(state)
    _train(other, optimizer, step, 4, 8)
    for key, x in model.state_dict().items():
        assert torch.equal(x, other.state_dict()[key]), key
