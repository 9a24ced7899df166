"""Accuracy, loss and calibration against sums by hand; labels by name; images that cannot be read; real labels."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from visionattn.training.config import DataConfig
from visionattn.training.errors import UserError
from visionattn.training.shapes import CLASSES
from visionattn.training.sources import load_split
from visionattn.training.trained import Choice, Trained, load, locate, running
from visionattn.training.transforms import ToInput, eval_transform
from visionattn.validate.evaluate import Result, evaluate
from visionattn.validate.labels import RealLabels, matching


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Path]) -> Trained:
    choice = Choice()
    return load(locate(str(made_run(tmp_path_factory.mktemp("run"))), choice), choice)


def found(trained: Trained, data: DataConfig, **how: object) -> Result:
    device, _, autocast = running("cpu", "fp32")
    return evaluate(trained, load_split(data, "val"), data, device, autocast, **how)


def answers(trained: Trained, data: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and classes of all images at once."""
    images, transform = load_split(data, "val"), eval_transform(data)
    pixels = torch.stack([transform(images[i][0]) for i in range(len(images))])
    with torch.no_grad():
        logits = trained.model(ToInput(data, torch.device("cpu"))(pixels))
    return logits, torch.tensor([images[i][1] for i in range(len(images))])


def test_figures_are_those_of_sums_by_hand(trained: Trained) -> None:
    logits, labels = answers(trained, trained.data)
    confidence, choice = logits.softmax(1).max(1)
    order = logits.argsort(1, descending=True)
    ece = mce = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = abs(float(confidence[inside].mean()) - float((choice == labels)[inside].float().mean()))
            ece, mce = ece + gap * int(inside.sum()) / len(labels), max(mce, gap)
    result = found(trained, trained.data)
    assert result.images == 40
    assert result.top1 == pytest.approx(100 * float((choice == labels).float().mean()))
    assert result.top5 == pytest.approx(100 * float((order[:, :5] == labels[:, None]).any(1).float().mean()))
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert result.ece == pytest.approx(100 * ece, rel=1e-4) and result.mce == pytest.approx(100 * mce, rel=1e-4)
    assert sum(n for n, _, _ in result.bins) == 40
    by_bins = sum(n * abs(confidence - accuracy) for n, confidence, accuracy in result.bins) / 40
    assert result.ece == pytest.approx(100 * by_bins, rel=1e-4)
    assert result.images_per_s > 0 and result.seconds > 0


def test_batches_of_any_size_and_layout_change_nothing(trained: Trained) -> None:
    expected = found(trained, trained.data)
    for how, size in ((dict(channels_last=True), 7), (dict(), 40)):
        data = dataclasses.replace(trained.data, eval_batch_size=size)
        result = found(trained, data, **how)
        assert (result.top1, result.top5) == (expected.top1, expected.top5)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_classes_of_the_data_are_found_among_the_models_by_name(
    trained: Trained, tmp_path: Path, drawn_shapes: Callable[[Path], Path]
) -> None:
    root = drawn_shapes(tmp_path)
    data = dataclasses.replace(trained.data, dataset="folder", root=str(root))
    assert matching(trained, sorted(CLASSES)).tolist() == [CLASSES.index(name) for name in sorted(CLASSES)]
    all_of_them = found(trained, data)
    for name in CLASSES[3:]:
        for file in (root / "val" / name).iterdir():
            file.unlink()
        (root / "val" / name).rmdir()
    some = found(trained, data)
    logits, labels = answers(trained, data)
    names = sorted(CLASSES[:3])
    right = [trained.classes[i] == names[label] for i, label in zip(logits.argmax(1).tolist(), labels.tolist())]
    assert (all_of_them.images, some.images) == (30, 9)
    assert some.top1 == pytest.approx(100 * sum(right) / 9)


def test_classes_without_names_match_by_number_and_others_are_refused(trained: Trained) -> None:
    assert matching(trained, [str(i) for i in range(10)]).tolist() == list(range(10))
    with pytest.raises(UserError, match=r"knows 10 classes \(circle, square, triangle, ...\), but the data has 2"):
        matching(trained, ["cat", "dog"])
    with pytest.raises(UserError, match="but the data has 3"):
        matching(trained, ["0", "1", "2"])
    guessed = dataclasses.replace(trained, certain=False)
    assert matching(guessed, [f"class {i}" for i in range(10)]).tolist() == list(range(10))


def test_images_that_cannot_be_read_are_left_out_by_name(
    trained: Trained, tmp_path: Path, drawn_shapes: Callable[[Path], Path]
) -> None:
    root = drawn_shapes(tmp_path)
    bad = root / "val" / "ring" / "06.png"
    bad.write_bytes(bad.read_bytes()[:50])
    data = dataclasses.replace(trained.data, dataset="folder", root=str(root), unreadable="skip", eval_batch_size=8)
    result = found(trained, data)
    assert result.images == 29 and result.unreadable == [str(bad)]
    with pytest.raises(UserError, match=r"cannot read image .*ring/06.png"):
        found(trained, dataclasses.replace(data, unreadable="stop"))


def test_real_labels_count_any_of_them_and_leave_out_images_without(
    trained: Trained, tmp_path: Path, drawn_shapes: Callable[[Path], Path]
) -> None:
    root = drawn_shapes(tmp_path)
    bad = root / "val" / "circle" / "00.png"  # the first: what comes after must not slip
    bad.write_bytes(b"")
    data = dataclasses.replace(trained.data, dataset="folder", root=str(root), unreadable="skip", eval_batch_size=4)
    images, transform = load_split(data, "val"), eval_transform(data)
    first = {}
    for i in range(len(images)):
        if images.name(i) != str(bad):
            with torch.no_grad():
                x = ToInput(data, torch.device("cpu"))(transform(images[i][0])[None])
                first[Path(images.name(i)).name] = int(trained.model(x).argmax())
    labels = {name: [choice, (choice + 1) % 10] for name, choice in first.items()}  # all right
    wrong, empty = list(labels)[3:6], list(labels)[7]
    for name in wrong:
        labels[name] = [CLASSES[(first[name] + 1) % 10]]
    labels[empty] = []
    file = tmp_path / "real.json"
    file.write_text(json.dumps(labels))
    result = found(trained, data, real=RealLabels(str(file)))
    assert result.real_top1 == pytest.approx(100 * 25 / 28)
    assert 100 * 25 / 28 <= result.real_top5 <= 100


def test_imagenets_list_of_real_labels_goes_by_the_number_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[3], [], [4, 5]]))
    real = RealLabels(str(file))
    assert real.of("/x/n01/ILSVRC2012_val_00000003.JPEG", int) == [4, 5]
    assert real.of("ILSVRC2012_val_00000002.png", int) == []
    with pytest.raises(UserError, match="ILSVRC2012_val_00000001 to 00000003, but there is an image 06.png"):
        real.of("/x/06.png", int)


def test_a_model_that_refuses_the_size_says_so(trained: Trained) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Input height (32) doesn't match model (224).")

    class Refusing(torch.nn.Module):
        forward = staticmethod(refuse)

    broken = dataclasses.replace(trained, model=Refusing())
    with pytest.raises(UserError, match="refuses images of 32x32 pixels: Input height"):
        found(broken, trained.data)
