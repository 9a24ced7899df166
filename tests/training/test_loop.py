"""The loop: schedule, accumulation, clean stop, and a resume that ends with the bits of an undisturbed run."""

import csv
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visionattn.training import checkpoint, logs, train
from visionattn.training.config import TrainConfig
from visionattn.training.errors import Interrupted, UserError
from visionattn.training.loop import Trainer

# Everything that draws random numbers, averages or is split up.
RECIPE = [
    "--augment.mixup", "0.8", "--augment.cutmix", "1", "--augment.erase", "0.5", "--model.drop_path", "0.1",
    "--optim.accumulation", "2", "--optim.clip_grad", "1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    """Drawing takes longer than these runs do, and other tests look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def whole(tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory, no_curves: None) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.run(tiny(*RECIPE, "--run.dir", folder))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], None]) -> None:
    """Do something in the middle of optimiser step ``at`` (counted from 0)."""
    real = Trainer._one_step

    def step(self: Trainer, batches: object) -> object:
        if self.step == at:
            how()
        return real(self, batches)

    monkeypatch.setattr(Trainer, "_one_step", step)


def same_end(a: Path, b: Path, equal_bits: Callable) -> None:
    """Both runs ended with the same weights, averages, optimiser state and measurements."""
    one, two = (checkpoint.load(checkpoint.find(path)) for path in (a, b))
    assert one.state["step"] == two.state["step"] and one.state["best"] == two.state["best"]
    assert equal_bits(one.model, two.model) and equal_bits(one.ema, two.ema)
    assert one.optimizer["state"] and equal_bits(one.optimizer, two.optimizer)
    for name, columns in (("steps.csv", ("step", "loss", "lr")), ("epochs.csv", ("step", "val_loss", "top1", "top5"))):
        read = [[[row[column] for column in columns] for row in table(path / name)] for path in (a, b)]
        assert read[0] == read[1]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_stopped_by_a_signal_and_resumed_ends_bit_for_bit_the_same(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal_bits: Callable,
    whole: Path, number: int, workers: int,
) -> None:  # fmt: skip
    recipe = [*RECIPE, "--data.workers", workers]
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stop:
            train.run(tiny(*recipe, "--run.dir", tmp_path / "cut"))
    assert stop.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert checkpoint.load(checkpoint.find(tmp_path / "cut")).state["step"] == 7  # in the middle of an epoch
    train.run(tiny(*recipe, "--run.dir", tmp_path / "cut", "--resume", "auto"))
    same_end(whole, tmp_path / "cut", equal_bits)


def test_killed_between_checkpoints_and_resumed_ends_bit_for_bit_the_same(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal_bits: Callable
) -> None:
    recipe = [*RECIPE, "--run.checkpoint_steps", 3, "--augment.erase", 1, "--ema.enabled", "false"]
    train.run(tiny(*recipe, "--run.dir", tmp_path / "whole"))

    def crash() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        interrupt(patch, 7, crash)
        with pytest.raises(MemoryError):
            train.run(tiny(*recipe, "--run.dir", tmp_path / "cut"))
    assert checkpoint.load(checkpoint.find(tmp_path / "cut")).state["step"] == 6
    assert len(table(tmp_path / "cut" / "steps.csv")) == 7  # the seventh is done again
    train.run(tiny(*recipe, "--run.dir", tmp_path / "cut", "--resume", "auto"))
    same_end(tmp_path / "whole", tmp_path / "cut", equal_bits)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [
    [], ["--run.precision", "fp16"], ["--optim.name", "muon", "--optim.cuda_graph", "true"],
    ["--run.compile", "true", "--run.compile_mode", "reduce-overhead", "--optim.cuda_graph", "true"],
], ids=["bf16", "fp16", "muon in a graph", "all in graphs"])  # fmt: skip
def test_resume_on_a_gpu_ends_bit_for_bit_the_same(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal_bits: Callable, more: list
) -> None:
    recipe = [*RECIPE, "--run.device", "cuda", "--data.workers", 2, "--run.channels_last", "true", *more]
    train.run(tiny(*recipe, "--run.dir", tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train.run(tiny(*recipe, "--run.dir", tmp_path / "cut"))
    train.run(tiny(*recipe, "--run.dir", tmp_path / "cut", "--resume", "auto"))
    same_end(tmp_path / "whole", tmp_path / "cut", equal_bits)


def test_another_way_from_an_older_checkpoint_replaces_what_came_later(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal_bits: Callable
) -> None:
    scores = iter([3.0, 1.0, 1.0, 1.0, 1.0])  # the best is that of the first epoch
    monkeypatch.setattr(
        "visionattn.training.classification.Classification.evaluate",
        lambda self, model: dict(val_loss=1.0, top1=next(scores), top5=5.0, val_images=36),
    )
    run = tmp_path / "run"
    train.run(tiny("--run.dir", run))
    first = checkpoint.load(checkpoint.find(run))
    assert checkpoint.find(run / "checkpoints" / "best").name == "step-00000004"
    train.run(tiny("--resume", run / "checkpoints" / "best", "--optim.weight_decay", "0.5"))
    second = checkpoint.load(checkpoint.find(run))
    assert second.state["step"] == first.state["step"] == 12 and not equal_bits(first.model, second.model)
    assert [row["step"] for row in table(run / "epochs.csv")] == ["4", "8", "12"]


def test_learning_rate_rises_linearly_falls_as_a_cosine_and_stays_at_its_end(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    train.run(tiny(
        "--run.dir", tmp_path / "r", "--schedule.epochs", 3, "--schedule.warmup_epochs", 1.25,
        "--schedule.cooldown_epochs", 1, "--optim.lr", 0.01, "--optim.lr_batch", 32,
        "--schedule.warmup_lr", 0.001, "--schedule.min_lr", 0.0005,
    ))  # fmt: skip
    rates = [float(row["lr"]) for row in table(tmp_path / "r" / "steps.csv")]
    peak, warm, end = 0.005, 5, 12
    expected = [0.001 + (peak - 0.001) * step / warm for step in range(warm)]
    expected += [
        0.0005 + (peak - 0.0005) * (1 + math.cos(math.pi * step / (end - warm))) / 2 for step in range(end - warm)
    ]
    assert rates == pytest.approx(expected + [0.0005] * 4, rel=1e-9)


def test_a_constant_rate_stays_at_the_peak(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train.run(tiny(
        "--run.dir", tmp_path / "r", "--schedule.name", "constant", "--schedule.epochs", 2, "--optim.lr", 2e-3,
        "--schedule.warmup_epochs", 1,
    ))  # fmt: skip
    rates = [float(row["lr"]) for row in table(tmp_path / "r" / "steps.csv")]
    assert rates[4:] == pytest.approx([2e-3] * 4)


def test_a_rate_that_falls_in_steps_falls_after_its_epochs(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train.run(tiny(
        "--run.dir", tmp_path / "r", "--schedule.name", "steps", "--schedule.epochs", 3, "--optim.lr", 2e-3,
        "--schedule.warmup_epochs", 0.5, "--schedule.warmup_lr", 0, "--schedule.milestones", "[1, 2]",
        "--schedule.gamma", 0.5, "--data.shapes_train", 48, "--optim.batch_size", 12,
    ))  # fmt: skip
    rates = [float(row["lr"]) for row in table(tmp_path / "r" / "steps.csv")]
    assert rates == pytest.approx([0, 1e-3, 2e-3, 2e-3, *[1e-3] * 4, *[5e-4] * 4])


def test_accumulation_is_the_mean_over_the_whole_batch(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    losses = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        train.run(tiny("--run.dir", folder, "--optim.accumulation", parts, "--schedule.epochs", 2))
        losses.append([float(row["loss"]) for row in table(folder / "steps.csv")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_averaged_weights_are_what_is_evaluated_and_they_follow_the_decay(
    tiny: Callable[..., TrainConfig], tmp_path: Path, equal_bits: Callable
) -> None:
    for decay in (0.0, 0.9):
        train.run(tiny("--run.dir", tmp_path / str(decay), "--ema.decay", decay, "--schedule.epochs", 2))
    none, some = (checkpoint.load(checkpoint.find(tmp_path / name)) for name in ("0.0", "0.9"))
    assert equal_bits(none.model, none.ema)
    assert equal_bits(none.model, some.model) and not equal_bits(some.model, some.ema)
    train.run(tiny("--run.dir", tmp_path / "off", "--ema.enabled", "false", "--schedule.epochs", 2))
    measured = {name: table(tmp_path / name / "epochs.csv")[-1]["val_loss"] for name in ("0.0", "0.9", "off")}
    assert measured["0.0"] == measured["off"] != measured["0.9"]


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny("--run.dir", tmp_path / "r", "--optim.name", "sgd", "--optim.lr", 1e30, "--schedule.warmup_epochs", 0)
    with pytest.raises(
        UserError, match="the loss is (nan|inf) after step .*; a lower optim.lr or optim.clip_grad may help"
    ):
        train.run(config)
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model.kwargs", "{stem_stride: 4}"], "was trained with kwargs"),
        (["--ema.enabled", "false"], "ema.enabled disagree"),
        (["--optim.name", "sgd"], "was trained with optim.name = adamw, but now it is sgd"),
        (["--model.name", "gna_tiny", "--model.kwargs", "{dims: [8, 8, 8, 8], num_heads: 1}"], "model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    tiny: Callable[..., TrainConfig], tmp_path: Path, argv: list, message: str
) -> None:
    train.run(tiny("--run.dir", tmp_path / "r", "--schedule.epochs", 1, "--schedule.warmup_epochs", 0))
    with pytest.raises(UserError, match=message) as error:
        train.run(tiny("--run.dir", tmp_path / "s", *argv, "--resume", tmp_path / "r"))
    assert "\n" not in str(error.value)


def test_an_unknown_optimiser_is_refused(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    for argv, message in ((["--optim.name", "adamx"], "adamx"), (["--optim.kwargs", "{zzz: 1}"], "zzz")):
        with pytest.raises(UserError, match=f"optim.name is .*{message}"):
            train.run(tiny("--run.dir", tmp_path / "r", *argv))


def test_checkpoints_are_as_far_apart_as_asked_and_the_last_is_kept(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    real = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self, best=False: (saved.append((self.step, best)), real(self, best)))
    train.run(tiny("--run.checkpoint_epochs", 2, "--run.eval_every", 3, "--run.dir", tmp_path / "run"))
    assert saved == [(8, False), (12, True)]  # of 3 epochs with 4 steps; the third is the first that is judged
