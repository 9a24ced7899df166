"""Pictures on their way to the network: folders, augmentation that depends on (seed, epoch, index) alone, loaders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize

from visionattn.training import data, sources, transforms
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError, one_line
from visionattn.training.randomness import seed_host
from visionattn.training.shapes import Shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with four pictures each, train and val."""
    for split in ("train", "val"):
        images = Shapes(split, 8, 24)
        for i in range(8):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[i][0].save(path, quality=95)
    return tmp_path


AUGMENTED = [
    "--augment.auto_augment", "rand-m9-mstd0.5-inc1", "--augment.erase", "1", "--augment.vflip", "0.5",
    "--augment.color_jitter", "0.3",
]  # fmt: skip


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny: Callable[..., TrainConfig], crop: str) -> None:
    config = tiny(*AUGMENTED, "--augment.crop", crop, "--data.interpolation", "random")
    images = Shapes("train", 8, 40)
    samples = data.Samples(images, config)
    first, label, unreadable = samples[2, 5, 0]
    assert first.shape == (3, 32, 32) and first.dtype == torch.uint8 and label == 5 and not unreadable
    samples[0, 1, 0]  # other numbers drawn in between
    assert torch.equal(samples[2, 5, 0][0], first)
    config.run.seed += 1
    again = data.Samples(images, config)
    assert not torch.equal(again[2, 5, 0][0], first)
    assert not torch.equal(samples[3, 5, 0][0], first) and not torch.equal(samples[2, 5, 1][0], first)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(tiny: Callable[..., TrainConfig], workers: int) -> None:
    images = Shapes("train", 64, 32)

    def batches(count: int, start: int = 0) -> list[torch.Tensor]:
        config = tiny(*AUGMENTED, "--data.workers", count)
        return [x for x, _, _ in data.train_batches(config, images, 6, start, 0, 1, False)]

    alone = batches(0)
    assert all(torch.equal(a, b) for a, b in zip(batches(workers), alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches(workers, 3), alone[3:], strict=True))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", "v0", "3a"])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_policies_of_timm_work_with_every_crop(tiny: Callable[..., TrainConfig], policy: str, crop: str) -> None:
    config = tiny("--augment.auto_augment", policy, "--augment.crop", crop)
    picture = Shapes("train", 1, 32)[0][0]
    assert transforms.train_transform(config.data, config.augment)(picture).shape == (3, 32, 32)


@pytest.mark.parametrize("policy", ["rand-m10-inc1-n8", "augmix-m10-w6-d4", "originalr"])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_policies_of_timm_work_at_full_strength(tiny: Callable[..., TrainConfig], policy: str, crop: str) -> None:
    """Where they posterize to 0 bits, which Pillow refuses since 13.0."""
    config = tiny("--augment.auto_augment", policy, "--augment.crop", crop)
    picture, transform = Shapes("train", 1, 32)[0][0], transforms.train_transform(config.data, config.augment)
    seed_host(0)
    for _ in range(150):
        transform(picture)


@pytest.mark.parametrize("policy", ["rand-q9", "best", "augmix-z1"])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_an_unknown_policy_is_refused(tiny: Callable[..., TrainConfig], policy: str, crop: str) -> None:
    config = tiny("--augment.auto_augment", policy, "--augment.crop", crop)
    with pytest.raises(UserError, match=f"augment.auto_augment is '{policy}', which timm refuses: "):
        transforms.train_transform(config.data, config.augment)


def test_evaluation_crops_the_centre(tiny: Callable[..., TrainConfig]) -> None:
    picture = Image.new("RGB", (96, 64), (255, 0, 0))
    picture.paste((0, 0, 255), (32, 16, 64, 48))
    seen = transforms.eval_transform(tiny("--data.crop_pct", 0.5).data)(picture)
    assert seen.shape == (3, 32, 32) and seen.dtype == torch.uint8
    assert torch.allclose(seen.float(), torch.tensor([0.0, 0, 255])[:, None, None].expand(3, 32, 32), atol=3)


def test_what_the_network_sees_is_normalised(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--augment.erase", "1").data
    images = torch.randint(256, (4, 3, 8, 9), dtype=torch.uint8)
    expected = torch.stack([normalize(x / 255, config.mean, config.std) for x in images])
    assert torch.allclose(transforms.ToInput(config, torch.device("cpu"))(images), expected, atol=1e-6)


def test_erasing_depends_on_the_seed_alone(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--augment.erase", "1")
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    plain = transforms.ToInput(config.data, torch.device("cpu"))(images)
    erase = transforms.ToInput(config.data, torch.device("cpu"), config.augment)

    def erased(seed: int) -> torch.Tensor:
        seed_host(seed)
        return erase(images)

    assert torch.equal(erased(1), erased(1)) and not torch.equal(erased(1), erased(2))
    changed = (erased(1) != plain).flatten(1).float().mean(1)
    assert (changed > 0).all() and (changed < 0.5).all()


@pytest.fixture
def read(folder: Path, tiny: Callable[..., TrainConfig]) -> Callable[..., sources.Images]:
    """``read(*argv, split="train")``: a split of `folder`."""

    def make(*argv: object, split: str = "train") -> sources.Images:
        return sources._folder(tiny("--data.dataset", "folder", "--data.root", folder, *argv).data, split)

    return make


@pytest.mark.parametrize("cache", ["false", "true"])
def test_a_folder_is_read(read: Callable[..., sources.Images], cache: str) -> None:
    images = read("--data.cache", cache)
    assert len(images) == 8 and images.classes == ["a", "b"]
    picture, label = images[5]
    assert picture.mode == "RGB" and picture.size == (24, 24) and label == 1
    assert images.name(5).endswith(".jpg") and Path(images.name(5)).is_file()


def test_pictures_of_other_modes_become_rgb(folder: Path, read: Callable[..., sources.Images]) -> None:
    Image.new("L", (9, 9)).save(folder / "train" / "a" / "0.jpg")
    Image.new("RGBA", (9, 9)).save(folder / "train" / "a" / "x.png")
    images = read()
    assert {images[i][0].mode for i in range(len(images))} == {"RGB"}


@pytest.mark.parametrize("content", [b"", b"no picture", None], ids=["empty", "text", "cut"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_and_never_replaced_by_another(
    folder: Path, tiny: Callable[..., TrainConfig], read: Callable[..., sources.Images], content: bytes | None,
    workers: int,
) -> None:  # fmt: skip
    file = folder / "val" / "b" / "3.jpg"
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    images = read(split="val")
    with pytest.raises(UserError) as error:
        list(data.eval_loader(tiny("--data.workers", workers), images, 0, 1, False))
    line = one_line(error.value)
    assert line.startswith(f"cannot read image {file}: ") and "\n" not in line
    with pytest.raises(UserError, match="cannot read image"):
        read("--data.cache", "true", split="val")


def test_missing_and_empty_folders_are_named(tmp_path: Path, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--data.dataset", "folder", "--data.root", tmp_path).data
    with pytest.raises(UserError, match=f"data.root: {tmp_path}/train is not a directory; expected ROOT/SPLIT/CLASS"):
        sources.load_images(config)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=f"data.root: {tmp_path}/train holds no images in class directories"):
        sources.load_images(config)
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(UserError, match=f"data.root: the class folder {tmp_path}/train/a is empty"):
        sources.load_images(config)


def test_splits_must_have_the_same_classes(folder: Path, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--data.dataset", "folder", "--data.root", folder).data
    assert [len(images) for images in sources.load_images(config)] == [8, 8]
    (folder / "val" / "b").rename(folder / "val" / "c")
    with pytest.raises(UserError, match="data.root: the splits' classes differ, for example b, c"):
        sources.load_images(config)


def test_one_class_is_refused(folder: Path, tiny: Callable[..., TrainConfig]) -> None:
    for split in ("train", "val"):
        (folder / split / "b").rename(folder / f"{split}-b")
    with pytest.raises(UserError, match="there is only the class 'a'; at least two are needed"):
        sources.load_images(tiny("--data.dataset", "folder", "--data.root", folder).data)
