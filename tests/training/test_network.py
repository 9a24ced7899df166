"""The network of a run: weights taken from runs, files and other classifiers, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from visionattn.training import checkpoint, train
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError
from visionattn.training.network import create_model

CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def run(tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run on `shapes`."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train.run(tiny("--run.dir", folder, "--schedule.epochs", 1, "--schedule.warmup_epochs", 0))
    return folder


def body(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x for name, x in model.state_dict().items() if not name.startswith("head.fc")}


def test_a_run_is_fine_tuned_from_its_averaged_weights_and_keeps_its_classifier_for_the_same_classes(
    tiny: Callable[..., TrainConfig], run: Path, equal_bits: Callable
) -> None:
    found = checkpoint.load(checkpoint.find(run))
    for where in (run, run / "checkpoints" / "best", run / "checkpoints" / "last" / "ema.safetensors"):
        model = create_model(tiny("--model.checkpoint", where), found.state["classes"])
        assert equal_bits(dict(model.state_dict()), found.ema)
    assert not equal_bits(found.model, found.ema)


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:3]], ids=["other names", "other number"])
def test_other_classes_get_a_new_classifier_from_the_seed(
    tiny: Callable[..., TrainConfig], run: Path, equal_bits: Callable, classes: list[str]
) -> None:
    found = checkpoint.load(checkpoint.find(run)).ema
    config = tiny("--model.checkpoint", run)
    model = create_model(config, classes)
    assert equal_bits(body(model), {name: x for name, x in found.items() if not name.startswith("head.fc")})
    assert model.head.fc.weight.shape[0] == len(classes)
    assert not torch.equal(model.head.fc.weight[:3], found["head.fc.weight"][:3])
    assert equal_bits(dict(create_model(config, classes).state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested"])
def test_a_file_of_weights_is_taken_whatever_its_classes(
    tiny: Callable[..., TrainConfig], tmp_path: Path, equal_bits: Callable, form: str
) -> None:
    config = tiny()
    other = timm.create_model(config.model.name, num_classes=7, **config.model.kwargs)
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(other.state_dict(), file)
    else:
        torch.save(dict(model=other.state_dict(), epoch=3) if form == "nested" else other.state_dict(), file)
    model = create_model(tiny("--model.checkpoint", file), CLASSES)
    assert equal_bits(body(model), body(other)) and model.head.fc.weight.shape[0] == 10
    same = create_model(tiny("--model.checkpoint", file), CLASSES[:7])
    assert equal_bits(dict(same.state_dict()), dict(other.state_dict()))


def test_fine_tuning_starts_where_the_checkpoint_ended(
    tiny: Callable[..., TrainConfig], run: Path, tmp_path: Path
) -> None:
    """The first evaluation, at a learning rate of nothing, is the last one of the run before."""
    argv = ["--model.checkpoint", run, "--run.dir", tmp_path / "r", "--optim.lr", 1e-30, "--schedule.min_lr", 0]
    argv += ["--schedule.warmup_lr", 0, "--schedule.epochs", 1, "--schedule.warmup_epochs", 0, "--ema.enabled", "false"]
    before = train.run(tiny("--resume", run, "--schedule.epochs", 1, "--schedule.warmup_epochs", 0))
    assert train.run(tiny(*argv)) == before


class Code:
    """What pickle would run when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match=f"checkpoint .*{name} cannot be read: ") as error:
            create_model(tiny("--model.checkpoint", tmp_path / name), CLASSES)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


def test_weights_that_are_missing_damaged_or_of_another_model_are_named(
    tiny: Callable[..., TrainConfig], run: Path, tmp_path: Path
) -> None:
    def refused(message: str, *argv: object) -> None:
        with pytest.raises(UserError, match=message) as error:
            create_model(tiny(*argv), CLASSES)
        assert "\n" not in str(error.value)

    refused(f"checkpoint {tmp_path}/none does not exist", "--model.checkpoint", tmp_path / "none")
    refused("is no checkpoint and no run folder", "--model.checkpoint", tmp_path)
    damaged = tmp_path / "d.safetensors"
    damaged.write_bytes((run / "checkpoints" / "last" / "model.safetensors").read_bytes()[:1000])
    refused(f"checkpoint {damaged} cannot be read", "--model.checkpoint", damaged)
    foreign = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), foreign)
    refused(f"checkpoint {foreign} does not fit model.name gna_nano: ", "--model.checkpoint", foreign)
    refused("does not fit model.name resnet10t", "--model.checkpoint", run, "--model.name", "resnet10t",
            "--model.kwargs", "{}")  # fmt: skip


def test_checkpointed_gradients_are_the_gradients(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    losses = []
    for flag in ("true", "false"):
        argv = ["--model.grad_checkpointing", flag, "--model.drop_path", 0.2, "--schedule.epochs", 1]
        found = train.run(tiny(*argv, "--schedule.warmup_epochs", 0, "--run.dir", tmp_path / flag))
        losses.append(found["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert create_model(tiny("--model.grad_checkpointing", "true"), CLASSES).stages[0].grad_checkpointing


def test_a_model_without_gradient_checkpointing_says_so(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--model.grad_checkpointing", "true", "--model.name", "selecsls42", "--model.kwargs", "{}")
    with pytest.raises(UserError, match="model.grad_checkpointing is true, but selecsls42 does not support it"):
        create_model(config, CLASSES)


def test_batch_norms_are_made_common_to_all_processes(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("--run.sync_bn", "true", "--model.name", "resnet10t", "--model.kwargs", "{}")
    model = create_model(config, CLASSES)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) > 5


def test_weights_that_cannot_be_fetched_are_one_line_whatever_the_library_raises(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(Exception):
        pass

    def fetch(*args: object, **kwargs: object) -> None:
        raise Unreachable("no route to the server\nand more")

    monkeypatch.setattr(timm, "create_model", fetch)
    said = "^the published weights of gna_nano cannot be fetched: no route to the server$"
    with pytest.raises(UserError, match=said):
        create_model(tiny("--model.pretrained", "true"), CLASSES)
