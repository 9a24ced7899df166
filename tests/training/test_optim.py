"""Optimisers: layer-wise learning rates, what takes no weight decay, and losses for each class by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from visionattn.training import logs, train
from visionattn.training.classification import Classification
from visionattn.training.config import TrainConfig
from visionattn.training.network import create_model
from visionattn.training.optim import create_optimizer

CLASSES = [str(i) for i in range(10)]


def groups(config: TrainConfig) -> dict[str, dict]:
    """Parameter names and the group that each is in."""
    model = create_model(config, CLASSES)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = create_optimizer(config, model)
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    return found


def test_biases_norms_and_what_the_model_names_take_no_weight_decay(tiny: Callable[..., TrainConfig]) -> None:
    found = groups(tiny("--optim.weight_decay", 0.1))
    for name, group in found.items():
        free = name.endswith("bias") or "norm" in name or name.endswith("rpb")
        assert group["weight_decay"] == (0.0 if free else 0.1), name


def test_rates_fall_from_the_head_to_the_stem_by_a_factor_a_layer(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny("--optim.layer_decay", 0.5, "--run.dir", tmp_path / "r", "--schedule.epochs", 2)
    found = {name: group["lr_scale"] for name, group in groups(config).items()}
    assert found["head.fc.weight"] == 1.0
    order = ["stem.conv1.weight", *(f"stages.{i}.blocks.0.mlp.fc1.weight" for i in range(4)), "head.fc.weight"]
    scales = [found[name] for name in order]
    assert scales == sorted(scales) and len(set(scales)) == 6
    for low, high in zip(scales, scales[1:], strict=False):
        assert high / low in (2.0, 4.0)
    train.run(config)
    rates = [float(row["lr"]) for row in logs.read_table(tmp_path / "r" / "steps.csv")]
    assert max(rates) == pytest.approx(config.optim.lr)  # what is logged is the rate of the head


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon", "lamb"])
def test_optimisers_of_timm_lower_the_loss(tiny: Callable[..., TrainConfig], tmp_path: Path, name: str) -> None:
    rate = {"sgd": 0.05, "lion": 1e-3, "lamb": 0.05}.get(name, 1e-2)
    train.run(tiny(
        "--optim.name", name, "--optim.lr", rate, "--run.dir", tmp_path / "r", "--data.shapes_train", 16,
        "--schedule.epochs", 15, "--schedule.warmup_epochs", 1, "--augment.hflip", 0, "--run.eval_every", 15,
    ))  # fmt: skip
    losses = [float(row["loss"]) for row in logs.read_table(tmp_path / "r" / "steps.csv")]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_judges_each_class_for_itself(tiny: Callable[..., TrainConfig], mixed: bool) -> None:
    argv = ["--optim.loss", "bce", "--optim.label_smoothing", 0.1]
    task = Classification(tiny(*argv, *(["--augment.mixup", 0.5] if mixed else [])), Accelerator(cpu=True))
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    targets = nn.functional.one_hot(labels, 10) * 0.9 + 0.01
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert torch.allclose(task.criterion(logits, targets if mixed else labels), expected)
    sharp = Classification(tiny(*argv, "--optim.bce_threshold", 0.2), Accelerator(cpu=True)).criterion
    expected = nn.functional.binary_cross_entropy_with_logits(logits, nn.functional.one_hot(labels, 10).float())
    assert torch.allclose(sharp(logits, labels), expected)
