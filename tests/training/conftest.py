"""A run small enough for a test: gna_nano with one narrow block a stage, on a few generated pictures of 32x32."""

from collections.abc import Callable

import pytest
import torch

from visionattn.training.config import TrainConfig, validate
from visionattn.training.options import parse

MODEL = "{stem_stride: 4, dims: [16, 16, 32, 32], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}"
TINY = [
    "--model.kwargs", MODEL, "--data.image_size", "32", "--data.shapes_train", "64", "--data.shapes_val", "36",
    "--data.eval_batch_size", "10", "--optim.batch_size", "16", "--schedule.epochs", "3", "--run.device", "cpu",
    "--run.log_steps", "1", "--run.threads", "1",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """``tiny(*argv)``: the options of a tiny run, with those in argv over them."""

    def make(*argv: object) -> TrainConfig:
        config = parse(TrainConfig, [*TINY, *map(str, argv)], "test", "")
        validate(config)
        return config

    return make


@pytest.fixture(scope="session")
def equal_bits() -> Callable[[object, object], bool]:
    """Whether two nests of tensors and plain values are the same, bit for bit."""

    def compare(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(compare(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(compare, a, b))
        return a == b

    return compare
