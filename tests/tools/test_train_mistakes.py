"""What users get wrong: each case is one clear line on stderr and exit code 2, and leaves nothing behind."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from visionattn.training import checkpoint
from visionattn.training.loop import Trainer
from visionattn.training.shapes import Shapes
from visionattn.training.train import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = "{stem_stride: 4, dims: [16, 16, 32, 32], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}"
TINY = [
    "--model.kwargs", MODEL, "--data.image_size", "32", "--data.shapes_train", "32", "--data.shapes_val", "20",
    "--optim.batch_size", "16", "--schedule.epochs", "2", "--run.device", "cpu", "--run.log_steps", "1",
    "--run.threads", "1",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """``refused(message, *argv)``: the run ends with code 2 and one line that says `message`."""

    def check(message: str, *argv: object) -> None:
        capsys.readouterr()
        assert main([*TINY, *map(str, argv)]) == 2
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if "Warning" not in line and not line.startswith("  ")]
        assert len(lines) == 1 and lines[0].startswith("visionattn train: error: "), err
        assert message in lines[0], lines[0]

    return check


OPTIONS = {
    "mistyped option": (["--optim.lrr", "1"], "unknown option --optim.lrr; did you mean optim.lr?"),
    "option of another section": (["--data.lr", "1"], "unknown option --data.lr; did you mean optim.lr?"),
    "unknown section": (["--optimiser.lr", "1"], "unknown option --optimiser.lr"),
    "word without an option": (["shapes"], "shapes"),
    "word for a number": (["--optim.lr", "fast"], "optim.lr"),
    "fraction for an integer": (["--optim.batch_size", "1.5"], "optim.batch_size"),
    "not a choice": (["--data.dataset", "imagenet"], "data.dataset"),
    "not yes or no": (["--run.compile", "maybe"], "run.compile"),
    "list for a number": (["--data.image_size", "[32, 32]"], "data.image_size"),
    "three betas": (["--optim.betas", "[0.1, 0.2, 0.3]"], "optim.betas"),
    "missing config": (["--config", "c.yaml"], "--config c.yaml: no such file"),
    "negative rate": (["--optim.lr", "-1"], "optim.lr is -1.0; it must be above 0"),
    "rate that is no number": (["--optim.lr", "nan"], "optim.lr: Expected a float. Got value: nan"),
    "rate without an end": (["--optim.lr", "inf"], "optim.lr"),
    "probability above 1": (["--augment.hflip", "1.5"], "augment.hflip is 1.5; it must be between 0 and 1"),
    "no epochs": (["--schedule.epochs", "0"], "schedule.epochs is 0; it must be at least 1"),
    "warm-up longer than the run": (["--schedule.warmup_epochs", "9"], "schedule.warmup_epochs is 9.0; it must"),
    "batch that does not divide": (["--optim.accumulation", "3"], "optim.batch_size is 16; it must be a multiple of"),
    "odd batch under mixup": (["--optim.batch_size", "15", "--augment.mixup", "1"], "mixup and cutmix need an even"),
    "batch larger than the data": (["--optim.batch_size", "64"], "batch_size is 64, but there are only 32 training"),
    "repeats that do not divide": (["--augment.repeats", "3"], "augment.repeats is 3; it must be a divisor of"),
    "sizes that end elsewhere": (["--data.progressive_sizes", "[16, 24]"], "data.progressive_sizes is [16, 24]; it"),
    "unknown policy": (["--augment.auto_augment", "rand-q1"], "augment.auto_augment is 'rand-q1', which timm refuses"),
    "no folder named": (["--data.dataset", "folder"], "data.root is not set"),
    "folder that is not there": (["--data.dataset", "folder", "--data.root", "x"], "x/train is not a directory"),
    "tar that is not there": (["--data.dataset", "tar", "--data.root", "x"], "x/train.tar is not a file"),
    "shards without classes": (["--data.dataset", "wds", "--data.root", "x"], "data.classes is not set"),
    "shards that are not there": (
        ["--data.dataset", "wds", "--data.root", "x", "--data.classes", "3"], "shard x/train*.tar does not exist"),
    "dataset that is not there": (["--data.dataset", "hfds", "--data.root", "./x"], "the Hugging Face dataset ./x"),
    "unknown model": (["--model.name", "gna_nana"], "model.name is 'gna_nana', which timm does not know"),
    "unknown argument of the model": (["--model.kwargs", "{width: 3}"], "model gna_nano cannot be built: "),
    "published weights that are not": (["--model.pretrained", "true"], "model gna_nano cannot be built: "),
    "unknown optimiser": (["--optim.name", "adamx"], "optim.name is 'adamx'"),
    "unknown argument of the optimiser": (["--optim.kwargs", "{speed: 3}"], "optim.name is 'adamw': "),
    "unknown teacher": (["--distill.teacher", "resnet9"], "distill.teacher is 'resnet9', which timm does not know"),
    "checkpoint that is not there": (["--model.checkpoint", "w.pth"], "checkpoint w.pth does not exist"),
    "resume from nowhere": (["--resume", "no/run"], "resume: no/run is no checkpoint and no run folder"),
    "half precision on a CPU": (["--run.precision", "fp16"], "run.precision is fp16, which needs a GPU"),
    "graph under loss scaling": (["--run.precision", "fp16", "--optim.cuda_graph", "true"], "optim.cuda_graph is true"),
    "deviation of zero": (["--data.std", "[0, 1, 1]"], "data.std is (0.0, 1.0, 1.0); it must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_is_one_line_and_leaves_nothing(here: Path, refused: Callable[..., None], case: str) -> None:
    argv, message = OPTIONS[case]
    refused(message, *argv)
    assert not list(here.iterdir())


FILES = {
    "not YAML": ("optim: [1", "--config c.yaml: not a YAML file"),
    "a list": ("- 1\n- 2", "the file must hold options as 'key: value'"),
    "mistyped key": ("optim: {lr: 1, batchsize: 3}", "unknown key 'optim.batchsize'; did you mean optim.batch_size?"),
    "mistyped section": ("optm: {lr: 1}", "unknown key 'optm.lr'; did you mean optim.lr?"),
    "number for a section": ("optim: 3", "optim must hold options as 'key: value', but is 3"),
    "wrong type": ("optim: {lr: quick}", "optim.lr"),
    "code": ("run: !!python/object/apply:os.system ['touch x']", "--config c.yaml: not a YAML file"),
    "bytes": (b"\xff\xfe\x00", "--config c.yaml: not a YAML file"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_config_file_is_one_line_and_runs_nothing(here: Path, refused: Callable[..., None], case: str) -> None:
    content, message = FILES[case]
    (here / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(message, "--config", "c.yaml")
    assert [path.name for path in here.iterdir()] == ["c.yaml"]


@pytest.fixture
def folder(here: Path) -> Path:
    for split, count in (("train", 24), ("val", 8)):
        images = Shapes(split, count, 40)
        for i in range(count):
            path = here / "data" / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[i][0].save(path)
    return here / "data"


@pytest.mark.parametrize("case", ["empty class", "no images", "other classes", "one class", "damaged image"])
def test_a_wrong_image_folder_is_one_line(folder: Path, refused: Callable[..., None], case: str) -> None:
    if case == "empty class":
        (folder / "train" / "c").mkdir()
        message = f"data.root: the class folder {folder / 'train' / 'c'} is empty"
    elif case == "no images":
        for file in (folder / "train").rglob("*.jpg"):
            file.rename(file.with_suffix(".txt"))
        message = f"{folder / 'train'} holds no images in class directories"
    elif case == "other classes":
        (folder / "val" / "b").rename(folder / "val" / "c")
        message = "the splits' classes differ, for example b, c"
    elif case == "one class":
        for split in ("train", "val"):
            shutil.rmtree(folder / split / "b")
        message = "there is only the class 'a'; at least two are needed"
    else:
        (folder / "train" / "b" / "3.jpg").write_bytes(b"damaged")
        message = f"cannot read image {folder / 'train' / 'b' / '3.jpg'}"
    refused(message, "--data.dataset", "folder", "--data.root", folder, "--optim.batch_size", 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TINY, "--run.dir", str(folder)]) == 0
    return folder


RESUMES = {
    "another architecture": (["--model.name", "gna_tiny"], "was trained with model = gna_nano, but now it is gna_tiny"),
    "other arguments": (["--model.kwargs", "{stem_stride: 4}"], "was trained with kwargs = "),
    "another optimiser": (["--optim.name", "sgd"], "was trained with optim.name = adamw, but now it is sgd"),
    "another batch size": (["--optim.batch_size", "8"], "was trained with optim.batch_size = 16, but now it is 8"),
    "no average": (["--ema.enabled", "false"], "ema.enabled disagree"),
}


@pytest.mark.parametrize("case", RESUMES)
def test_resuming_with_what_does_not_fit_is_one_line(trained: Path, refused: Callable[..., None], case: str) -> None:
    argv, message = RESUMES[case]
    refused(message, "--resume", trained, "--run.dir", trained, *argv)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
def test_a_truncated_checkpoint_is_one_line(trained: Path, here: Path, refused: Callable[..., None], name: str) -> None:
    copy = shutil.copytree((trained / "checkpoints" / "last").resolve(), here / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:50])
    refused(f"{name} cannot be read", "--resume", copy)


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_pickle_that_tries_to_run_code_is_refused(trained: Path, here: Path, refused: Callable[..., None]) -> None:
    copy = shutil.copytree((trained / "checkpoints" / "last").resolve(), here / "copy")
    torch.save(dict(state=Code()), copy / "optimizer.pt")
    refused("optimizer.pt cannot be read", "--resume", copy)
    (here / "w.pth").write_bytes(pickle.dumps(Code()))
    refused("checkpoint w.pth cannot be read", "--model.checkpoint", "w.pth")
    assert not (here / "touched").exists()


def test_weights_of_another_model_are_one_line(here: Path, refused: Callable[..., None]) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), "w.pth")
    refused("checkpoint w.pth does not fit model.name gna_nano", "--model.checkpoint", "w.pth")


def test_a_run_folder_that_is_taken_is_not_touched(trained: Path, here: Path, refused: Callable[..., None]) -> None:
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    refused("already holds a run; continue it with --resume auto", "--run.dir", trained)
    assert sorted(path.stat().st_mtime_ns for path in trained.rglob("*")) == before
    (here / "file").write_text("")
    refused("is a file; it must be a folder", "--run.dir", here / "file")


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("run.device is cuda, but PyTorch finds no usable GPU", "--run.device", "cuda")


@pytest.mark.parametrize("package", ["webdataset", "datasets", "wandb"])
def test_a_package_that_is_not_installed_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    argv = {
        "webdataset": ["--data.dataset", "wds", "--data.root", "x", "--data.classes", 3],
        "datasets": ["--data.dataset", "hfds", "--data.root", "x"],
        "wandb": ["--run.wandb", "project"],
    }[package]
    refused(f"pip install {package}", *argv)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_checkpoint(
    here: Path, refused: Callable[..., None]
) -> None:
    argv = ["--run.dir", here / "r", "--optim.name", "momentum", "--schedule.warmup_epochs", 0]
    assert main([*TINY, *map(str, argv), "--schedule.epochs", "1"]) == 0
    good = checkpoint.load(checkpoint.find(here / "r"))
    assert good.state["step"] == 2
    argv += ["--resume", "auto", "--optim.lr", 1e30, "--optim.clip_grad", "null", "--run.log_steps", 100]
    refused("the loss is nan after step 4; the last good checkpoint is kept", *argv, "--schedule.epochs", 3)
    kept = checkpoint.load(checkpoint.find(here / "r"))
    assert kept.state["step"] == 2 and all(torch.equal(kept.model[key], x) for key, x in good.model.items())


def test_weights_that_are_not_finite_are_not_saved(
    here: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that breaks them is still fine."""
    real = Trainer._one_step

    def step(self: Trainer, batches: object) -> torch.Tensor:
        loss = real(self, batches)
        if self.step == 2:
            self.parameters[3].data.flatten()[0] = float("inf")
        return loss

    monkeypatch.setattr(Trainer, "_one_step", step)
    argv = ["--run.dir", here / "r", "--run.checkpoint_steps", 1]
    refused("the weights are not finite after step 3; the last good checkpoint is kept", *argv)
    assert checkpoint.load(checkpoint.find(here / "r")).state["step"] == 2


def test_a_disk_that_is_full_while_saving_leaves_the_old_checkpoint(trained: Path, here: Path) -> None:
    shutil.copytree(trained, here / "run", symlinks=True)
    old = checkpoint.load(checkpoint.find(here / "run"))

    def no_room() -> None:  # as a full disk, but for files above a size: everything but the checkpoint still fits
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    argv = [*TINY, "--run.dir", "run", "--resume", "auto", "--schedule.epochs", "3"]
    process = subprocess.run(
        [sys.executable, ROOT / "tools" / "train.py", *argv], cwd=here, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, preexec_fn=no_room)  # fmt: skip
    assert process.returncode == 2, process.stderr
    line = process.stderr.strip().splitlines()[-1]
    assert (
        line.startswith("visionattn train: error: run.dir: checkpoint ") and "step-00000006 cannot be written" in line
    )
    assert "Traceback" not in process.stderr
    kept = checkpoint.load(checkpoint.find(here / "run"))
    assert kept.state["step"] == 4 and all(torch.equal(kept.model[key], x) for key, x in old.model.items())
    assert not [path for path in (here / "run" / "checkpoints").iterdir() if path.name.startswith(".")]


def test_there_are_at_least_forty_cases_here() -> None:
    assert len(OPTIONS) + len(FILES) + len(RESUMES) >= 40
