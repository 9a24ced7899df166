"""The classification task: the model it builds, what it counts, and the errors of both."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from visionattn.training import data, transforms
from visionattn.training.classification import Classification
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError
from visionattn.training.network import create_model
from visionattn.training.run import cpu_threads
from visionattn.training.shapes import Shapes

CLASSES = [str(i) for i in range(10)]


def test_weights_depend_on_the_seed_alone(tiny: Callable[..., TrainConfig], equal_bits: Callable) -> None:
    first = create_model(tiny(), CLASSES).state_dict()
    torch.rand(3)
    assert equal_bits(first, create_model(tiny("--data.shapes_train", 32), CLASSES).state_dict())
    assert not equal_bits(first, create_model(tiny("--run.seed", 1), CLASSES).state_dict())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model.name", "gna_nanu"], "model.name is 'gna_nanu', which timm does not know; for example: gna_"),
        (["--model.name", "zzz"], "model.name is 'zzz', which timm does not know; for example: gna_"),
        (["--model.kwargs", "{depth: 3}"], "model gna_nano cannot be built: .*depth"),
        (["--model.kwargs", "{stem_stride: 3}"], "model gna_nano cannot be built: .*stem_stride"),
        (["--model.kwargs", "{num_classes: 3}"], "model gna_nano cannot be built: .*num_classes"),
        (["--model.pretrained", "true"], "model gna_nano cannot be built: .*pretrained"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_clear_line(
    tiny: Callable[..., TrainConfig], argv: list, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        create_model(tiny(*argv), CLASSES)
    assert "\n" not in str(error.value)


def test_more_images_in_a_step_than_there_are_is_refused(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(UserError, match="optim.batch_size is 80, but there are only 64 training images"):
        Classification(tiny("--optim.batch_size", 80), Accelerator(cpu=True))


class Fixed(nn.Module):
    """Logits that are a function of the picture, cheap and without a favourite class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, ::300][:, :10] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_each_image_once(tiny: Callable[..., TrainConfig], workers: int) -> None:
    config = tiny("--data.workers", workers)  # 36 images in batches of 10: the last is uneven
    task = Classification(config, Accelerator(cpu=True))
    images = Shapes("val", 36, 32)
    transform = transforms.eval_transform(config.data)
    to_input = transforms.ToInput(config.data, torch.device("cpu"))
    logits = Fixed()(to_input(torch.stack([transform(images[i][0]) for i in range(36)])))
    labels = torch.tensor([images[i][1] for i in range(36)])
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    model = Fixed().train()
    for _ in range(2):  # the second time over the same loader
        found = task.evaluate(model)
        assert found["val_images"] == 36
        assert found["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
        assert found["top1"] == pytest.approx(100 * float((ranks == 0).sum()) / 36)
        assert found["top5"] == pytest.approx(100 * float((ranks < 5).sum()) / 36)
    assert model.training


def test_the_last_epochs_see_no_mixed_batches(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--augment.mixup", 1, "--augment.cutmix", 1, "--augment.mix_off_epochs", 1, "--schedule.epochs", 3)
    task, mixed = Classification(config, Accelerator(cpu=True)), []
    task.criterion = lambda logits, targets: mixed.append(bool(((targets > 0.1).sum(1) > 1).any())) or logits.sum()
    for step, batch in zip(range(12), task.batches(12, 0)):  # four to an epoch
        task.loss(Fixed(), batch, step)
    assert sum(mixed[:8]) >= 4 and not any(mixed[8:])  # a mix of nearly all and nearly nothing does not show


def test_processes_share_the_evaluation_without_overlap(tiny: Callable[..., TrainConfig]) -> None:
    config, images = tiny(), Shapes("val", 36, 32)
    parts = [torch.cat([x for x, _, _ in data.eval_loader(config, images, rank, 5, False)]) for rank in range(5)]
    whole = torch.cat([x for x, _, _ in data.eval_loader(config, images, 0, 1, False)])
    assert [len(part) for part in parts] == [8, 7, 7, 7, 7]
    assert all(torch.equal(part, whole[rank::5]) for rank, part in enumerate(parts))


def test_two_classes_are_enough(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"))
    config = tiny("--data.dataset", "folder", "--data.root", tmp_path, "--optim.batch_size", 4)
    found = Classification(config, Accelerator(cpu=True)).evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 2))
    )
    assert found["top5"] == 100


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def write_folder(root: Path, classes: tuple[str, ...], splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 36), (i * 50, 10, 200)).save(root / split / name / f"{i}.png")
