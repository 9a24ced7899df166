"""Learning from a teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torchvision.transforms.functional import normalize

from visionattn.training.classification import Classification
from visionattn.training.config import TrainConfig
from visionattn.training.distill import Teacher
from visionattn.training.errors import UserError

CLASSES = [str(i) for i in range(10)]


@pytest.fixture
def options(tiny: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """A tiny run with a resnet10t of random weights for a teacher."""
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "teacher.pth")
    argv = ["--distill.teacher", "resnet10t", "--distill.checkpoint", tmp_path / "teacher.pth"]
    return lambda *more: tiny(*argv, *more)


def test_a_teacher_sees_images_in_its_own_normalisation_and_size_and_learns_nothing(
    options: Callable[..., TrainConfig], tiny: Callable[..., TrainConfig]
) -> None:
    config = options("--data.mean", "[0.1, 0.2, 0.3]", "--data.std", "[0.5, 0.6, 0.7]")
    teacher = Teacher(config, CLASSES).train()
    pixels = torch.rand(2, 3, 32, 32)
    cfg = teacher.model.pretrained_cfg
    expected = teacher.model(normalize(pixels, cfg["mean"], cfg["std"]))
    found = teacher.answers(normalize(pixels, config.data.mean, config.data.std))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert not found.requires_grad and not teacher.model.training
    fixed = tiny("--distill.teacher", "vit_tiny_patch16_224")
    fixed.distill.checkpoint = "-"  # weights do not matter to the size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visionattn.training.distill.build",
                      lambda *a, **k: timm.create_model("vit_tiny_patch16_224", num_classes=10))  # fmt: skip
        assert Teacher(fixed, CLASSES).answers(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_the_loss_is_the_cross_entropy_of_softened_answers(options: Callable[..., TrainConfig]) -> None:
    student, answers = torch.randn(2, 5, 10)
    soft = Teacher(options("--distill.temperature", 3), CLASSES)
    p, log_q = (answers / 3).softmax(1), (student / 3).log_softmax(1)
    assert soft.loss(student, answers) == pytest.approx(9 * float((p * (p.log() - log_q)).sum(1).mean()), rel=1e-5)
    assert soft.loss(answers, answers) == pytest.approx(0, abs=1e-6)
    hard = Teacher(options("--distill.hard", "true"), CLASSES)
    assert torch.equal(hard.loss(student, answers), nn.functional.cross_entropy(student, answers.argmax(1)))


def test_alpha_weighs_labels_and_teacher(options: Callable[..., TrainConfig], tiny: Callable[..., TrainConfig]) -> None:
    losses = {}
    for alpha in (0.0, 0.25, 1.0):
        task = Classification(options("--distill.alpha", alpha), Accelerator(cpu=True))
        losses[alpha] = float(task.loss(task.model, next(task.batches(1, 0)), 0))
    plain = Classification(tiny(), Accelerator(cpu=True))
    assert losses[0.0] == pytest.approx(float(plain.loss(plain.model, next(plain.batches(1, 0)), 0)), rel=1e-6)
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert losses[1.0] != pytest.approx(losses[0.0], rel=1e-3)


def test_an_unknown_teacher_is_named(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(UserError, match="distill.teacher is 'resnet9', which timm does not know"):
        Teacher(tiny("--distill.teacher", "resnet9"), CLASSES)
