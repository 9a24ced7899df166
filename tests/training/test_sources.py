"""Where images come from: tar files, Hugging Face datasets, WebDataset shards, and what unreadable ones do."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from visionattn.training import data, sources
from visionattn.training.config import TrainConfig
from visionattn.training.errors import Unreadable, UserError, one_line
from visionattn.training.shapes import Shapes

SPLITS = {"train": 24, "val": 10}


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def pictures(split: str) -> list[tuple[bytes, int]]:
    images = Shapes(split, SPLITS[split], 40)
    return [(jpeg(images[i][0]), i % 4) for i in range(len(images))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as folders, as tar files, as shards of 4 and as a Hugging Face dataset."""
    root = tmp_path_factory.mktemp("images")
    for split in SPLITS:
        found = pictures(split)
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for i, (content, label) in enumerate(found):
                path = root / split / "abcd"[label] / f"{i:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                add(tar, f"{split}/{'abcd'[label]}/{i:02}.jpg", content)
        (root / "shards").mkdir(exist_ok=True)
        for first in range(0, len(found), 4):
            write_shard(root / "shards" / f"{split}-{first // 4:04}.tar", found[first : first + 4], first)
        rows = dict(image=[dict(bytes=content, path=None) for content, _ in found], label=[label for _, label in found])
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcd")))
        (root / "hub" / "data").mkdir(parents=True, exist_ok=True)
        file = root / "hub" / "data" / f"{'validation' if split == 'val' else split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return root


def write_shard(path: Path, samples: list[tuple[bytes, int]], first: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for i, (content, label) in enumerate(samples, first):
            add(tar, f"{i:04}.jpg", content)
            add(tar, f"{i:04}.cls", str(label).encode())
            add(tar, f"{i:04}.json", json.dumps(dict(kind=3 - label)).encode())


@pytest.fixture
def options(tiny: Callable[..., TrainConfig], root: Path) -> Callable[..., TrainConfig]:
    """``options(dataset, *argv)``: a tiny run on the pictures in one of their forms."""

    def make(dataset: str, *argv: object) -> TrainConfig:
        more = {
            "wds": ["--data.classes", 4, "--data.train_samples", SPLITS["train"], "--data.shuffle_buffer", 3],
            "hfds": ["--data.val_split", "validation"],
        }.get(dataset, [])
        where = {"wds": root / "shards", "hfds": root / "hub"}.get(dataset, root)
        return tiny("--data.dataset", dataset, "--data.root", where, "--optim.batch_size", 8, *more, *argv)

    return make


def batches(config: TrainConfig, steps: int, start: int = 0, rank: int = 0, world: int = 1) -> list[data.Batch]:
    images = sources.load_images(config.data)[0]
    return list(data.train_batches(config, images, steps, start, rank, world, False))


def evaluated(config: TrainConfig, rank: int = 0, world: int = 1) -> list[tuple[torch.Tensor, int]]:
    images = sources.load_images(config.data)[1]
    loader = data.eval_loader(config, images, rank, world, False)
    return [(image, int(label)) for images, labels, _ in loader for image, label in zip(images, labels, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", ["tar", "hfds"])
def test_other_forms_of_the_same_pictures_give_the_batches_of_the_folder(
    options: Callable[..., TrainConfig], dataset: str, workers: int
) -> None:
    if dataset == "hfds":  # numbered as written, not by class
        config = options(dataset, "--data.workers", workers)
        assert [len(x) for x in sources.load_images(config.data)] == [24, 10]
        assert sources.load_images(config.data)[0].classes == list("abcd")
        alone = batches(options(dataset), 6)
    else:
        config, alone = options(dataset, "--data.workers", workers), batches(options("folder"), 6)
        assert all(
            torch.equal(a, b) and x == y
            for (a, x), (b, y) in zip(evaluated(config), evaluated(options("folder")), strict=True)
        )
    for one, other in zip(batches(config, 6), alone, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_tar_read_before_its_workers_are_forked_is_read_whole_by_them(options: Callable[..., TrainConfig]) -> None:
    config = options("tar", "--data.workers", 3, "--optim.batch_size", 4)
    images = sources.load_images(config.data)[0]
    expected = [images[i][0].tobytes() for i in range(len(images))]  # opens the file here
    assert len(expected) == 24
    one = list(data.train_batches(config, images, 12, 0, 0, 1, False))
    for a, b in zip(one, batches(options("tar", "--optim.batch_size", 4), 12), strict=True):
        assert torch.equal(a[0], b[0])


def test_the_library_that_reads_a_tar_is_given_a_damaged_one(
    options: Callable[..., TrainConfig], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.tar").write_bytes((root / "train.tar").read_bytes()[:100])
    with pytest.raises(UserError, match=f"data.root: {tmp_path}/train.tar cannot be read as a tar"):
        sources.load_images(options("tar", "--data.root", tmp_path).data)
    with pytest.raises(UserError, match=f"data.root: {tmp_path}/other.tar is not a file"):
        sources.load_images(options("tar", "--data.root", tmp_path, "--data.train_split", "other").data)


def test_a_hugging_face_dataset_that_is_not_there_is_named(options: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.root: the Hugging Face dataset {tmp_path}/none, split train: "):
        sources.load_images(options("hfds", "--data.root", tmp_path / "none").data)


# Shards.


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (3, 2)])
def test_an_epoch_of_shards_takes_other_samples_in_every_batch_and_worker(
    options: Callable[..., TrainConfig], workers: int, world: int
) -> None:
    config = options("wds", "--data.workers", workers, "--augment.hflip", 0)
    ranks = [batches(config, 3, 0, rank, world) for rank in range(world)]
    assert all(len(found) == 3 and len(images) == 8 // world for found in ranks for images, _, _ in found)
    seen = torch.cat([images for found in ranks for images, _, _ in found]).flatten(1).unique(dim=0)
    assert len(seen) >= (24 if (workers, world) == (0, 1) else 20)  # workers' shares of shards are not quite equal


@pytest.mark.parametrize("start", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_taken_up_anywhere_continues_with_the_same_bits(
    options: Callable[..., TrainConfig], workers: int, start: int
) -> None:
    config = options("wds", "--data.workers", workers, "--augment.auto_augment", "rand-m9-mstd0.5-inc1",
                     "--optim.accumulation", 2)  # fmt: skip
    whole = batches(config, 8)
    for one, other in zip(batches(config, 8, start), whole[2 * start :], strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(whole[0][0], whole[6][0])  # the next epoch has another order


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (1, 2), (4, 1)])
def test_evaluation_of_shards_counts_each_sample_once(
    options: Callable[..., TrainConfig], workers: int, world: int
) -> None:
    config = options("wds", "--data.workers", workers)
    seen = [item for rank in range(world) for item in evaluated(config, rank, world)]
    assert len(seen) == 10
    assert len(torch.stack([image for image, _ in seen]).flatten(1).unique(dim=0)) == 10
    assert sorted(label for _, label in seen) == sorted(i % 4 for i in range(10))


@pytest.mark.parametrize("split", ["train", "train-{0000..0005}.tar"])
def test_shards_are_found_by_pattern_by_beginning_and_by_their_list(
    options: Callable[..., TrainConfig], root: Path, tmp_path: Path, split: str
) -> None:
    assert len(sources.load_images(options("wds", "--data.train_split", split).data)[0].urls) == 6
    for file in (root / "shards").iterdir():
        (tmp_path / file.name).symlink_to(file)
    names = {s: sorted(file.name for file in tmp_path.glob(f"{s}-*")) for s in SPLITS}
    info = {s: dict(name=s, filenames=names[s], num_samples=SPLITS[s], shard_lengths=[4] * 6) for s in SPLITS}
    (tmp_path / "_info.json").write_text(json.dumps(dict(splits=info)))
    config = options("wds", "--data.root", tmp_path).data
    config.train_samples = None
    train, val = sources.load_images(config)
    assert (len(train), len(val), len(train.urls)) == (24, 10, 6)


def test_the_class_may_come_from_a_field_of_the_json_file(options: Callable[..., TrainConfig]) -> None:
    own = [label for _, label in evaluated(options("wds"))]
    assert [label for _, label in evaluated(options("wds", "--data.target_key", "kind"))] == [3 - x for x in own]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.train_split", "trian"], "shard .*/trian\\*.tar does not exist"),
        (["--data.train_split", "train-{0000..0009}.tar"], "shard .*/train-0006.tar does not exist"),
        (["--data.workers", 7], "data.workers x processes is 7, but there are only 6 shards of train"),
        (["--data.classes", 3], "data.classes is 3, but .*: 00.. is of class 3"),
        (["--data.target_key", "sort"], "data.target_key: .* has no field 'sort' in its json file with a class number"),
        (["--data.input_key", "png"], "data.input_key: .* has none of png"),
    ],
)
def test_mistakes_about_shards_are_named(options: Callable[..., TrainConfig], argv: list, message: str) -> None:
    with pytest.raises(UserError) as error:
        batches(options("wds", *argv), 6)
    assert re.search(message, one_line(error.value)), error.value


def test_shards_without_a_number_of_samples_or_classes_are_refused(options: Callable[..., TrainConfig]) -> None:
    for key in ("train_samples", "classes"):
        config = options("wds")
        setattr(config.data, key, None)
        with pytest.raises(UserError, match=f"data.{key} is not set"):
            batches(config, 1)


# Unreadable images.


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> dict[str, Path]:
    """Folder, tar and shards in which the training images 3 and 4 and the validation image 5 are damaged."""
    bad = {"train": (3, 4), "val": (5,)}
    for split, numbers in bad.items():
        found = [(b"damaged" if i in numbers else x, label) for i, (x, label) in enumerate(pictures(split))]
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for i, (content, label) in enumerate(found):
                path = tmp_path / split / "abcd"[label] / f"{i:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                add(tar, f"{split}/{'abcd'[label]}/{i:02}.jpg", content)
        write_shard(tmp_path / f"{split}-0.tar", found[: len(found) // 2])
        write_shard(tmp_path / f"{split}-1.tar", found[len(found) // 2 :], len(found) // 2)
    return {"folder": tmp_path, "tar": tmp_path, "wds": tmp_path}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", ["folder", "tar", "wds"])
def test_unreadable_images_are_skipped_and_named_or_stop_the_run(
    options: Callable[..., TrainConfig], damaged: dict[str, Path], dataset: str, workers: int
) -> None:
    argv = ["--data.root", damaged[dataset], "--data.workers", workers]
    if dataset == "wds":
        argv += ["--data.train_split", "train-", "--data.val_split", "val-"]
    with pytest.raises(Unreadable) as error:
        batches(options(dataset, *argv), 3)
    assert one_line(error.value).startswith("cannot read image ")
    skip = options(dataset, *argv, "--data.unreadable", "skip")
    found = batches(skip, 3)
    assert all(len(images) == 8 for images, _, _ in found)
    named = {name for _, _, names in found for name in names if name}
    assert len(named) == 2 and all("03" in name or "04" in name for name in named)
    again = batches(skip, 3, 1)
    assert all(torch.equal(a[0], b[0]) and a[2] == b[2] for a, b in zip(again, found[1:], strict=True))
    images = sources.load_images(skip.data)[1]
    names = [name for _, _, names in data.eval_loader(skip, images, 0, 1, False) for name in names]
    assert len(names) == 10 and sum(map(bool, names)) == 1 and "05" in "".join(names)


def test_a_cache_without_the_unreadable_images_trains_like_none(
    options: Callable[..., TrainConfig], damaged: dict[str, Path]
) -> None:
    argv = ["--data.root", damaged["folder"], "--data.unreadable", "skip"]
    plain, cached = (batches(options("folder", *argv, "--data.cache", x), 3) for x in ("false", "true"))
    assert all(torch.equal(a[0], b[0]) and a[2] == b[2] for a, b in zip(plain, cached, strict=True))


def test_nothing_but_unreadable_images_stops_the_run(options: Callable[..., TrainConfig], tmp_path: Path) -> None:
    for split in SPLITS:
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(b"damaged")
    with pytest.raises(Unreadable, match="nor can the 7 images after it"):
        batches(options("folder", "--data.root", tmp_path, "--data.unreadable", "skip"), 1)


# Growing images.


def test_training_images_grow_in_equal_parts_of_the_schedule(options: Callable[..., TrainConfig]) -> None:
    for dataset in ("folder", "wds"):
        config = options(dataset, "--data.progressive_sizes", "[16, 24, 32]", "--schedule.cooldown_epochs", 1)
        assert [images.shape[-1] for images, _, _ in batches(config, 12)] == [16] * 3 + [24] * 3 + [32] * 6
        assert evaluated(config)[0][0].shape[-1] == 32
