"""A run small enough for a test: gna_nano with one narrow block a stage, on a few generated pictures of 32x32."""

from collections.abc import Callable, Iterator

import pytest
from accelerate.state import AcceleratorState

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


@pytest.fixture(autouse=True)
def _another_device_or_precision_in_one_process() -> Iterator[None]:
    """accelerate keeps a process's first device and precision; on a GPU, tests of both kinds share a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
