"""``visionattn export``, really run: every form is what the model is, failures are not kept, what users get wrong."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from visionattn import cli
from visionattn.export import formats
from visionattn.export.cli import main
from visionattn.export.graph import trace
from visionattn.training.errors import UserError
from visionattn.training.shapes import CLASSES
from visionattn.training.trained import Choice, load, locate

ROOT = Path(__file__).resolve().parents[2]
# one variant a family: all take images of any size, and one graph has to serve all heights and widths between these
FAMILIES = {
    "gna_nano": (224, 1024), "nat_mini": (32, 1024), "fused_halonet26t": (32, 1024), "biformer_tiny": (113, 1024),
    "fused_gcvit_xxtiny": (32, 1024), "fused_davit_tiny": (33, 1024), "fused_maxvit_tiny": (32, 1024),
    "inline_swin_tiny": (32, 1024), "inline_deit_tiny": (32, 1024), "inline_pvt_tiny": (64, 1024),
    "fused_swin_tiny": (32, 1024), "vsa_swin_tiny": (32, 1024),
}  # fmt: skip
ONE_STAGE = {"dims": [32], "depths": [1], "num_heads": [1]}
SHORT = {
    "gna_nano": ONE_STAGE, "nat_mini": ONE_STAGE, "fused_swin_tiny": {**ONE_STAGE, "depths": [2]},
    "vsa_swin_tiny": ONE_STAGE, "fused_maxvit_tiny": ONE_STAGE, "fused_davit_tiny": ONE_STAGE,
    "biformer_tiny": {**ONE_STAGE, "topk": [3]}, "fused_gcvit_xxtiny": {**ONE_STAGE, "depths": [2]},
    "inline_swin_tiny": {**ONE_STAGE, "depths": [2], "linear_depths": [1]}, "inline_deit_tiny": {"depth": 1},
    "fused_halonet26t": {"dims": [32, 64], "depths": [1, 1], "mid_dims": [16, 32], "halos": [[], None],
                         "num_heads": [2, 2], "block_size": 4, "halo_size": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Path]) -> Path:
    return made_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*argv: object) -> int:
    return main([*map(str, argv), "--threads", "1"])


def test_a_folder_is_what_timm_loads_with_averaged_weights_and_class_names(here: Path, run: Path) -> None:
    assert export(run, "out") == 0
    model = timm.create_model("local-dir:out", pretrained=True).eval()
    ema = load_file(run / "checkpoints" / "last" / "ema.safetensors")
    state = model.state_dict()
    assert state.keys() == ema.keys() and all(torch.equal(state[key], ema[key]) for key in ema)
    config = model.pretrained_cfg
    assert list(config["label_names"]) == list(CLASSES) and config["input_size"] == (3, 32, 32)
    assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 1.0)
    again = locate("out", Choice())
    trained = load(again, Choice())
    assert trained.classes == list(CLASSES) and trained.data.image_size == 32 and trained.data.crop_pct == 1.0
    assert export(run, "raw", "--weights", "raw") == 0
    raw = load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.equal(value, raw[key]) for key, value in load_file("raw/model.safetensors").items())
    assert {path.name for path in here.iterdir()} == {"out", "raw"}


@pytest.mark.parametrize("name", ["fused_maxvit_tiny", "fused_gcvit_xxtiny"])
def test_a_folder_of_a_model_for_any_size_stays_one(here: Path, name: str) -> None:
    """Windows must not be tied to a size that timm records."""
    kwargs = json.dumps(dict(dims=[32], depths=[1], num_heads=[1]))
    assert export(name, "out", "--untrained", "--classes", 5, "--kwargs", kwargs, "--size", "75x90") == 0


def test_onnx_and_package_serve_other_sizes_and_know_the_classes(here: Path, run: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    assert export(run, "m.onnx", "m.pt2") == 0
    model = load(locate(str(run), Choice()), Choice()).model
    x = torch.randn(4, 3, 36, 45)
    with torch.no_grad():
        expected = model(x)
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.shape) == ("images", ["batch", 3, "height", "width"]) and outputs.name == "logits"
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected)
    says = session.get_modelmeta().custom_metadata_map
    assert json.loads(says["classes"]) == list(CLASSES) and says["weights"] == "ema"
    extra = {"about.json": ""}
    program = torch.export.load("m.pt2", extra_files=extra)
    torch.testing.assert_close(program.module()(x), expected)
    assert json.loads(extra["about.json"])["classes"] == list(CLASSES)


@pytest.mark.slow
def test_a_package_loads_in_another_process(here: Path, run: Path) -> None:
    assert export(run, "m.pt2") == 0
    x = torch.randn(4, 3, 36, 45)
    with torch.no_grad():
        torch.save(dict(x=x, expected=load(locate(str(run), Choice()), Choice()).model(x)), "x.pt")
    code = "import torch, visionattn; d = torch.load('x.pt', weights_only=True)"
    code += "; y = torch.export.load('m.pt2').module()"
    code += "(d['x']); torch.testing.assert_close(y, d['expected'])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_onnx_of_a_short_one_of_each_family_serves_other_sizes(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--untrained", "--classes", 7, "--kwargs", json.dumps(SHORT[name]), "--size", "96x112"]
    code = export(name, "m.onnx", *argv, "--sizes", "dynamic")
    out = capsys.readouterr()
    print(out.out, out.err)
    assert code == 0
    assert out.out.count("largest difference") == 5 and "done: m.onnx" in out.out


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_and_package_of_each_family_serve_dynamic_sizes(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    code = export(name, "m.onnx", "m.pt2", "--untrained", "--sizes", "dynamic")
    out = capsys.readouterr()
    print(out.out, out.err)
    assert code == 0
    assert out.out.count("largest difference") >= 10 and "done: m.onnx" in out.out and "done: m.pt2" in out.out
    says = re.search(r"serves any batch, heights (\d+) to (\d+), widths (\d+) to (\d+)", out.out)
    (low_h, high_h), (low_w, high_w) = [(int(says[i]), int(says[i + 1])) for i in (1, 3)]
    smallest, largest = FAMILIES[name]
    assert max(low_h, low_w) <= smallest < largest <= min(high_h, high_w)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    native = model.default_cfg["input_size"][-1]
    height = min(288, high_h)
    other, small = (height, max(low_w, height - 48)), (low_h + 13, min(low_w + 90, high_w))
    for batch, size in ((1, (native, native)), (3, other), (1, small)):
        x = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model(x)
        difference = (torch.from_numpy(session.run(None, {"images": x.numpy()})[0]) - expected).abs().max().item()
        print(f"ONNX of {name}, images {tuple(x.shape)}: {difference:.1e}")
        assert difference <= 1e-4


class Tied(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.shape[0] > 1 else x.amax((2, 3))


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.shape[2] * x.shape[3] > 2000 else x.amax((2, 3))


@pytest.mark.parametrize("sizes", ["auto", "dynamic", "fixed"])
def test_a_graph_has_to_serve_every_batch(sizes: str) -> None:
    with pytest.raises(UserError, match="tied to batches"):
        trace(Tied().eval(), (48, 48), sizes)


def test_what_a_graph_says_that_it_serves_is_served_from_corner_to_corner() -> None:
    graph = trace(Sizes().eval(), (48, 48), "dynamic")
    served = graph.program.module()
    assert graph.height[0] * graph.width[0] > 2000 and not graph.fixed
    for height in graph.height:
        for width in graph.width:
            x = torch.randn(1, 3, height, width)
            torch.testing.assert_close(served(x), x.mean((2, 3)))


def test_what_differs_is_not_kept(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = formats.to_folder

    def wrong(*args: object) -> Callable[[torch.Tensor], torch.Tensor]:
        model = real(*args)
        return lambda x: model(x) + 1e-3

    assert export(run, "out") == 0
    before = Path("out/model.safetensors").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(formats, "to_folder", wrong)
    assert export(run, "new") == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "failed: new differs from PyTorch by 1.0e-03" in err[0] and "not kept" in err[0]
    assert export(run, "out", "--overwrite") == 1
    assert Path("out/model.safetensors").read_bytes() == before and [path.name for path in here.iterdir()] == ["out"]


def test_an_output_that_is_there_is_replaced_only_when_asked(here: Path, run: Path) -> None:
    assert export(run, "out", "--weights", "raw") == 0
    raw = Path("out/model.safetensors").read_bytes()
    assert export(run, "out") == 2
    assert Path("out/model.safetensors").read_bytes() == raw
    assert export(run, "out", "--overwrite") == 0
    assert Path("out/model.safetensors").read_bytes() != raw


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


CASES = {
    "no output": (["RUN"], "the following arguments are required: OUTPUT"),
    "missing path": (["runs/none", "m.onnx"], "runs/none does not exist"),
    "not a model": (["image.png", "m.onnx"], "image.png is a file of weights; --model must say which model"),
    "not weights": (["image.png", "m.onnx", "--model", "gna_nano"], "checkpoint image.png cannot be read"),
    "unknown model": (["gna_nana", "m.onnx"], "'gna_nana' is no path, and no model that timm knows"),
    "untrained run": (["RUN", "m.onnx", "--untrained"], "and only such names can be untrained"),
    "no published weights": (["gna_nano", "m.onnx"], "gna_nano has no published weights"),
    "checkpoint of another model": (["resnet.pth", "m.pt2", "--model", "gna_nano"], "does not fit --model gna_nano"),
    "truncated checkpoint": (["short", "m.pt2"], "ema.safetensors cannot be read"),
    "pickle that runs code": (["code.pth", "m.pt2", "--model", "gna_nano"], "checkpoint code.pth cannot be read"),
    "wrong classes": (["few", "out"], "does not fit model gna_nano"),
    "classes of a trained model": (["RUN", "out", "--classes", "3"], "--classes is for --untrained"),
    "bad size": (["RUN", "m.pt2", "--size", "0"], "argument --size: must be a size such as 224"),
    "size that is no size": (["RUN", "m.pt2", "--size", "3xx"], "argument --size: must be a size such as 224"),
    "unknown form": (["RUN", "m.tflite"], "output m.tflite: .tflite is none of .onnx and .pt2"),
    "output that is there": (["RUN", "image.onnx"], "output: image.onnx is there already; --overwrite replaces it"),
    "folder for a file": (["RUN", "folder.onnx", "--overwrite"], "output folder.onnx is a folder; .onnx names a file"),
    "output below a file": (["RUN", "image.png/m.onnx"], "image.png is no folder that may be written to"),
    "an output twice": (["RUN", "m.pt2", "m.pt2"], "an output is named twice"),
    "arguments that do not exist": (["gna_nano", "out", "--untrained", "--kwargs", '{"width": 3}'], "width"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    for name in ("image.png", "image.onnx"):
        (folder / name).write_bytes(b"\x89PNG and so on")
    (folder / "folder.onnx").mkdir()
    (folder / "code.pth").write_bytes(pickle.dumps(Code()))
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), folder / "resnet.pth")
    last = (run / "checkpoints" / "last").resolve()
    short = shutil.copytree(last, folder / "short") / "ema.safetensors"
    short.write_bytes(short.read_bytes()[:60])
    few = shutil.copytree(last, folder / "few") / "state.json"
    few.write_text(json.dumps(json.loads(few.read_text()) | dict(classes=["a", "b"])))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(place)
    argv, message = CASES[case]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    try:
        code = main([str(run) if argument == "RUN" else argument for argument in argv])
    except SystemExit as leaving:  # argparse's own
        code = leaving.code
    assert code == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("visionattn export: error: ") and message in err[0], err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named_before_any_work(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert export(run, "m.onnx") == 2
    assert f'ONNX needs the package {package}: pip install "visionattn[export]"' in capsys.readouterr().err
    assert not list(here.iterdir())


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["export", "--help"])
    assert not leaving.value.code
    out = capsys.readouterr().out
    options = ["overwrite", "weights", "model", "kwargs", "untrained", "classes", "size", "sizes", "tolerance"]
    assert all(f"--{option}" in out for option in options) and out.count("default:") >= len(options)
    assert "Exit code: 0" in out and "FILE.onnx" in out
