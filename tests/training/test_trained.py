"""Where a trained model comes from: runs, checkpoints, exported folders, files, names; which weights, which classes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from visionattn.training.errors import UserError
from visionattn.training.shapes import CLASSES
from visionattn.training.trained import Choice, load, locate, running


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Path]) -> Path:
    return made_run(tmp_path_factory.mktemp("trained") / "run")


def weights_of(source: object, **choice: object) -> dict[str, torch.Tensor]:
    choice = Choice(**choice)
    return load(locate(str(source), choice), choice).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_gives_its_averaged_weights_unless_raw_ones_are_asked_for(run: Path) -> None:
    last = run / "checkpoints" / "last"
    ema, raw = load_file(last / "ema.safetensors"), load_file(last / "model.safetensors")
    assert not same(ema, raw)
    for source in (run, run / "checkpoints", last, last.resolve(), run / "checkpoints" / "best"):
        assert same(weights_of(source), ema)
        assert same(weights_of(source, weights="raw"), raw)
    assert same(weights_of(last / "model.safetensors"), raw), "a file that is named is the one that is read"


def test_a_run_without_an_average_gives_its_raw_weights_and_says_so(tmp_path: Path, made_run: Callable) -> None:
    run = made_run(tmp_path / "run", average=False)
    assert locate(str(run), Choice()).weights == "raw"
    with pytest.raises(UserError, match="keeps no averaged weights"):
        locate(str(run), Choice(weights="ema"))


def test_a_run_says_its_classes_and_its_images(run: Path) -> None:
    choice = Choice()
    trained = load(locate(str(run), choice), choice)
    assert trained.classes == list(CLASSES) and trained.certain and not trained.model.training
    assert (trained.data.dataset, trained.data.image_size, trained.data.shapes_val) == ("shapes", 32, 40)


def test_a_bare_file_loads_as_the_architecture_that_is_named(tmp_path: Path) -> None:
    torch.manual_seed(3)
    kwargs = dict(dims=[16], depths=[1], num_heads=[1])
    model = timm.create_model("gna_nano", num_classes=7, **kwargs)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        choice = Choice(model="gna_nano", kwargs=kwargs)
        trained = load(locate(str(tmp_path / name), choice), choice)
        assert same(trained.model.state_dict(), model.state_dict())
        assert trained.classes == [str(i) for i in range(7)] and not trained.certain
        assert trained.data.image_size == 224 and trained.data.interpolation == "bicubic"


def test_a_name_without_published_weights_is_refused_and_untrained_ones_are_fresh() -> None:
    with pytest.raises(UserError, match="gna_tiny has no published weights"):
        locate("gna_tiny", Choice())
    choice = Choice(untrained=True, classes=5, kwargs=dict(dims=[16], depths=[1], num_heads=[1]))
    trained = load(locate("gna_nano", choice), choice)
    assert len(trained.classes) == trained.model.num_classes == 5


def test_published_weights_out_of_reach_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    choice = Choice()
    with pytest.raises(UserError, match="weights of resnet10t.c3_in1k cannot be loaded: no route to host$"):
        load(locate("resnet10t.c3_in1k", choice), choice)


def test_names_of_imagenet_come_with_published_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: weights)
    choice = Choice()
    trained = load(locate("resnet10t.c3_in1k", choice), choice)
    assert trained.certain and trained.classes[0] == "n01440764" and trained.title(0) == "tench"


def test_a_folder_that_timm_wrote_keeps_its_classes(tmp_path: Path) -> None:
    kwargs = dict(dims=[16], depths=[1], num_heads=[1])
    model = timm.create_model("gna_nano", num_classes=3, **kwargs)
    timm.models.save_for_hf(model, tmp_path / "f", model_config=dict(label_names=["a", "b", "c"]),
                            safe_serialization=True, data_config=dict(input_size=(3, 64, 64)))  # fmt: skip
    choice = Choice()
    trained = load(locate(str(tmp_path / "f"), choice), choice)
    assert trained.classes == ["a", "b", "c"] and trained.certain
    assert trained.name == "gna_nano" and trained.data.image_size == 64
    assert same(trained.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("key", ["model", "classes", "config"])
def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, made_run: Callable, key: str) -> None:
    run = made_run(tmp_path / "run")
    state = (run / "checkpoints" / "last").resolve() / "state.json"
    says = json.loads(state.read_text())
    del says[key]
    state.write_text(json.dumps(says))
    with pytest.raises(UserError, match=f"no checkpoint of an image classifier: its state.json has no '{key}'"):
        locate(str(run), Choice())


def test_precision_and_device_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match="--precision is fp16, which needs a GPU"):
        running("cpu", "fp16")
    device, precision, autocast = running("cpu", "bf16")
    with autocast:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (device.type, precision) == ("cpu", "bf16")
