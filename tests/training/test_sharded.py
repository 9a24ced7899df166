"""Shared-out state: whole tensors go in and come out as they were, and a step is the step of a whole model."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from visionattn.training import sharded
from visionattn.training.average import Ema
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError
from visionattn.training.network import create_model


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def build(tiny: Callable[..., TrainConfig]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = create_model(tiny(), list("abcd"))
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_state_passes_from_a_whole_model_to_a_shared_one_and_back(
    group: None, tiny: Callable[..., TrainConfig], equal_bits: Callable
) -> None:
    one, optimizer = build(tiny)
    step(one, optimizer, 1)
    saved = copy.deepcopy([one.state_dict(), optimizer.state_dict()])
    two = build(tiny)[0].to(memory_format=torch.channels_last)
    sharded.shard(two, torch.device("cpu"), 1)
    assert all(isinstance(x, sharded.DTensor) for x in two.parameters())
    other = torch.optim.AdamW(two.parameters(), 1e-2)
    two.load_state_dict(sharded.parts(saved[0], two))
    other.load_state_dict(sharded.optimizer_parts(saved[1], other))
    again = sharded.whole([two.state_dict(), other.state_dict()])
    assert equal_bits(again, saved)
    assert isinstance(other.state_dict()["state"][0]["exp_avg"], sharded.DTensor)
    step(one, optimizer, 2)
    step(two, other, 2)
    ends = [one.state_dict(), sharded.whole(two.state_dict())]
    assert not equal_bits(ends[0], saved[0])
    for name, x in ends[0].items():
        torch.testing.assert_close(ends[1][name], x, rtol=1e-4, atol=1e-5)


def test_averages_of_shared_weights_are_those_of_whole_ones(group: None, tiny: Callable[..., TrainConfig]) -> None:
    averages = []
    for shared in (False, True):
        model, optimizer = build(tiny)
        ema = Ema(model, decay=0.9)
        if shared:
            for each in (model, ema.module):
                sharded.shard(each, torch.device("cpu"), 1)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for seed in (1, 2):
            step(model, optimizer, seed)
            ema.update(model)
        averages.append(sharded.whole(ema.module.state_dict()))
    for name, x in averages[0].items():
        torch.testing.assert_close(averages[1][name], x, rtol=1e-4, atol=1e-5)


def test_optimisers_that_need_whole_matrices_are_refused() -> None:
    sharded.require_elementwise("adamw")
    with pytest.raises(UserError, match="optim.name is 'muon'; run.parallel fsdp2 allows adam, "):
        sharded.require_elementwise("muon")


def test_blocks_are_those_of_the_stages(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    model, _ = build(tiny)
    assert len(list(sharded.blocks(model))) == 4
