"""Images in WebDataset shards: tar files that are read as a stream, from a disk or from anywhere else.

The order of an epoch is a function of (seed, epoch, number of reading workers): shards are permuted and dealt out to
the workers of all processes, each of which shuffles what it reads in a buffer. A run resumed within an epoch reads that
epoch's shards again from their start, without decoding what it passes over; so it continues with the same bits as long
as processes and data.workers are as many as before.

timm's reader of shards is not used: it decodes whatever is passed over, carries the state of its shuffle from epoch to
epoch, and says of an unreadable image only in a log.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .config import DataConfig
from .errors import Unreadable, UserError
from .randomness import Purpose, seed_host, seed_of

if TYPE_CHECKING:
    from PIL import Image

IMAGE_KEYS = "jpg;jpeg;png;webp"
MOST_IN_A_ROW = 1000  # unreadable images, before a run gives up on skipping them


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError:
        raise UserError("data.dataset is wds, which needs the package webdataset: pip install webdataset") from None
    return webdataset


class Shards:
    """One split of a WebDataset.

    Args:
        config: ``root``, ``classes``, ``input_key``, ``target_key``, ``shuffle_buffer``, ``unreadable``.
        split: a name in ROOT/_info.json; a pattern of files such as ``train-{0000..0146}.tar``; or the beginning of the
            names of shards in the directory ROOT.
        samples: how many images there are; None takes it from _info.json where that says.

    Raises:
        UserError: where no shard is found, or the number of classes is not given.
    """

    def __init__(self, config: DataConfig, split: str, samples: int | None):
        self.config, self.split = config, split
        if not config.classes:
            raise UserError("data.classes is not set; data.dataset 'wds' needs the number of classes")
        self.classes = [str(i) for i in range(config.classes)]
        self.urls, listed = self._find()
        self.samples = samples or listed

    def _find(self) -> tuple[list[str], int | None]:
        wds, root = _webdataset(), self.config.root
        if "{" in self.split or self.split.endswith(".tar"):
            urls, listed = [os.path.join(root, name) for name in wds.shardlists.expand_urls(self.split)], None
        else:
            urls, listed = self._listed() or (sorted(glob.glob(f"{glob.escape(root)}/{self.split}*.tar")), None)
        local = [url for url in urls if "://" not in url and not url.startswith("pipe:")]
        missing = [url for url in local if not Path(url).is_file()]
        if missing or not urls:
            raise UserError(f"data.root: shard {missing[0] if missing else f'{root}/{self.split}*.tar'} does not exist")
        return urls, listed

    def _listed(self) -> tuple[list[str], int | None] | None:
        """What ROOT/_info.json, which timm writes beside shards, says of the split."""
        for name in ("_info.json", "info.json"):
            file = Path(self.config.root) / name
            if file.is_file():
                try:
                    found = json.loads(file.read_text(encoding="utf-8"))["splits"][self.split]
                    return [os.path.join(self.config.root, name) for name in found["filenames"]], found["num_samples"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"data.root: {file} says nothing of the split {self.split!r}: {error!r}") from None
        return None

    def __len__(self) -> int:
        if not self.samples:
            raise UserError(
                f"data.train_samples is not set, and there is no _info.json in {self.config.root} that says how many "
                f"images the split {self.split} has"
            )
        return self.samples

    def raw(self, urls: list[str], rng: random.Random | None = None) -> Iterator[dict[str, Any]]:
        """Undecoded samples of some shards in their order, or shuffled in a buffer."""
        wds = _webdataset()
        samples = wds.tarfile_to_samples()({"url": url} for url in urls)
        buffer = self.config.shuffle_buffer
        if rng is not None and buffer > 1:
            samples = wds.shuffle(buffer, initial=buffer, rng=rng)(samples)
        try:
            yield from samples
        except (OSError, ValueError) as error:  # tarfile's errors are OSErrors
            raise UserError(f"data.root: a shard of {urls[0]} ... {urls[-1]} cannot be read: {error}") from None

    def read(self, sample: dict[str, Any]) -> tuple[Image.Image, int]:
        """Picture and class of a raw sample.

        Raises:
            Unreadable: for a damaged picture.
            UserError: where the sample lacks one of them, or the class is not one of ``data.classes``.
        """
        from .sources import decode

        name = self.name(sample)
        keys = (self.config.input_key or IMAGE_KEYS).split(";")
        picture = next((sample[key] for key in keys if key in sample), None)
        if picture is None:
            raise UserError(f"data.input_key: {name} has none of {', '.join(keys)}")
        label = self._label(sample, name)
        if not 0 <= label < len(self.classes):
            raise UserError(f"data.classes is {len(self.classes)}, but {name} is of class {label}")
        return decode(io.BytesIO(picture), name), label

    def _label(self, sample: dict[str, Any], name: str) -> int:
        key = self.config.target_key
        try:
            return int(sample["cls"] if key is None else json.loads(sample["json"])[key])
        except (KeyError, ValueError, TypeError):
            where = "cls file" if key is None else f"field {key!r} in its json file"
            raise UserError(f"data.target_key: {name} has no {where} with a class number") from None

    @staticmethod
    def name(sample: dict[str, Any]) -> str:
        return f"{sample['__url__']}: {sample['__key__']}"


class TrainingStream(IterableDataset):
    """The rest of one epoch for one process, batch after batch: ``(uint8 image, class, name of an unreadable one)``.

    Worker w of W delivers the process's batches w, w + W, ... of the epoch, whose first is ``skip`` here.

    Args:
        shards: what is read.
        transform: what makes the network's input of a picture.
        seed: the run's seed.
        epoch: which epoch.
        batch: samples in one batch of this process.
        batches: batches of this process in the whole epoch.
        skip: how many of them were there before.
        rank: this process among ``world``.
        world: number of processes.
    """

    def __init__(self, shards: Shards, transform: Callable, seed: int, epoch: int, batch: int, batches: int, skip: int,
                 rank: int, world: int):  # fmt: skip
        self.shards, self.transform, self.seed, self.epoch = shards, transform, seed, epoch
        self.batch, self.batches, self.skip, self.rank, self.world = batch, batches, skip, rank, world

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, str]]:
        info = get_worker_info()
        here, count = (info.id, info.num_workers) if info else (0, 1)
        worker = (here + self.skip) % count
        before, all_of_it = (len(range(worker, end, count)) * self.batch for end in (self.skip, self.batches))
        if before >= all_of_it:
            return
        number = self.rank * count + worker
        samples = enumerate(self._samples(number, self.world * count))
        pending: list[tuple[int, str]] = []
        for n, sample in itertools.islice(samples, before, None):
            try:
                picture, label = self.shards.read(sample)
            except Unreadable:
                if self.shards.config.unreadable == "stop" or len(pending) >= MOST_IN_A_ROW:
                    raise
                pending.append((n, self.shards.name(sample)))  # the next one that can be read takes its place
                continue
            for place, name in (*pending, (n, "")):
                if place >= all_of_it:
                    return
                seed_host(seed_of(Purpose.SAMPLE, self.seed, self.epoch, number, place))
                yield self.transform(picture), label, name
            pending = []
            if n + 1 >= all_of_it:
                return

    def _samples(self, number: int, workers: int) -> Iterator[dict[str, Any]]:
        """This worker's samples, over and over: some workers' shards hold fewer than their part of an epoch."""
        urls = self.shards.urls
        if len(urls) < workers:
            raise UserError(
                f"data.workers x processes is {workers}, but there are only {len(urls)} shards of {self.shards.split}"
            )
        for turn in itertools.count():
            order = np.random.default_rng(seed_of(Purpose.ORDER, self.seed, self.epoch, turn)).permutation(len(urls))
            rng = random.Random(seed_of(Purpose.ORDER, self.seed, self.epoch, turn, number))
            empty = True
            for sample in self.shards.raw([urls[i] for i in order[number::workers]], rng):
                empty = False
                yield sample
            if empty:
                raise UserError(f"data.root: there is no sample in {[urls[i] for i in order[number::workers]]}")


class EvaluationStream(IterableDataset):
    """Every sample of the shards once over the workers of all processes; an unreadable one has class -1."""

    def __init__(self, shards: Shards, transform: Callable, size: int, rank: int, world: int):
        self.shards, self.transform, self.size, self.rank, self.world = shards, transform, size, rank, world

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, str]]:
        info = get_worker_info()
        here, count = (info.id, info.num_workers) if info else (0, 1)
        for sample in self.shards.raw(self.shards.urls[self.rank * count + here :: self.world * count]):
            try:
                picture, label = self.shards.read(sample)
            except Unreadable:
                if self.shards.config.unreadable == "stop":
                    raise
                yield torch.zeros(3, self.size, self.size, dtype=torch.uint8), -1, self.shards.name(sample)
            else:
                yield self.transform(picture), label, ""
