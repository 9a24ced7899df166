"""The pictures and the command line: real runs on generated images, and mistakes told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visionattn.cli import main as console
from visionattn.training import checkpoint
from visionattn.training.config import TrainConfig
from visionattn.training.options import plain
from visionattn.training.shapes import draw_scene
from visionattn.visualize import gallery, source
from visionattn.visualize.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "scene.png"
    Image.fromarray(draw_scene(1, size=(60, 90), objects=2).image).save(path)
    return str(path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder as the trainer writes it, of a network that differs from the registered one."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig()
    config.data.image_size = 40
    torch.manual_seed(7)
    model = timm.create_model("gna_nano", num_classes=3, stem_stride=2)
    state = dict(step=5, best=0.0, config=plain(config), model="gna_nano", kwargs={"stem_stride": 2})
    state["classes"] = ["a", "b", "c"]
    checkpoint.save(folder / "checkpoints", checkpoint.Checkpoint(model.state_dict(), {}, {}, state))
    return str(folder)


def is_picture(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 5


def test_a_map_is_drawn_the_same_every_time(image, tmp_path, capsys):
    argv = ["map", "--model", "gna_nano", "--image", image, "--size", "64", "--at", "30,45"]
    argv += ["--layer", "stages.1.blocks.1"]
    for name in ("a.png", "b.png"):
        assert main([*argv, "--out", str(tmp_path / "new" / name)]) == 0
    said = capsys.readouterr().out
    assert "stages.1.blocks.1.attn: neighborhood 7, 2 heads" in said and "query at 4,6 of a 8x12 map" in said
    assert is_picture(tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]


def test_heads_differ_and_all_of_them_fit_one_picture(image, tmp_path):
    argv = ["map", "--model", "inline_deit_tiny", "--image", image, "--size", "64x96", "--layer", "0"]
    for head in ("0", "mean", "all"):
        assert main([*argv, "--head", head, "--out", str(tmp_path / f"{head}.png")]) == 0
    pictures = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(set(pictures.values())) == 3
    assert Image.open(tmp_path / "all.png").width > 2 * Image.open(tmp_path / "0.png").width


def test_a_sheet_holds_channels_too_and_the_layers_are_listed(image, tmp_path, capsys):
    argv = ["--model", "fused_davit_tiny", "--image", image, "--size", "64"]
    assert main(["sheet", *argv, "--out", str(tmp_path / "sheet.png")]) == 0 and is_picture(tmp_path / "sheet.png")
    assert main(["layers", *argv]) == 0
    said = capsys.readouterr().out
    assert "12 layers" in said and said.count("between channels") == 6
    assert "stages.2.blocks.4.attn" in said and "4x6" in said


def test_a_run_brings_its_own_network_images_and_weights(run_folder, tmp_path, capsys):
    found = source.load(None, False, run_folder)
    weights = checkpoint.load(checkpoint.find(Path(run_folder))).model
    assert found.side == 40 and found.name == "gna_nano, weights of run"
    assert torch.equal(found.model.stem.conv1.weight, weights["stem.conv1.weight"])
    assert main(["map", "--checkpoint", run_folder, "--layer", "0", "--out", str(tmp_path / "a.png")]) == 0
    assert "of a 20x27 map" in capsys.readouterr().out  # half of 40 x 53 pixels, not a quarter
    file = str(checkpoint.find(Path(run_folder)) / checkpoint.MODEL)
    assert main(["layers", "--model", "fused_swin_tiny", "--checkpoint", file]) == 2
    assert "does not fit --model fused_swin_tiny" in capsys.readouterr().err


@pytest.mark.parametrize("size, positions, expected", [
    ((224, 299), (56, 75), (4, 4)), ((97, 130), (13, 17), (8, 8)), ((33, 33), (2, 2), (32, 32)),
    ((100, 130), (25, 32), (4, 4)), ((64, 64), (64, 64), (1, 1)), ((90, 90), (30, 30), (3, 3)),
])  # fmt: skip
def test_the_pixels_of_a_position_are_those_that_stems_and_downsamplers_merge(size, positions, expected):
    assert source.tokens(size, positions) == expected


def test_a_pixel_belongs_to_the_position_whose_patch_holds_it():
    """A stem of patches tells: only the patch that holds the pixel feels it."""
    stem = timm.create_model("fused_swin_tiny").stem
    pixels = torch.zeros(1, 3, 30, 45, requires_grad=True)
    out = stem(pixels)
    for point in ((0.5, 0.5), (17.5, 44.5), (29.5, 7.5)):
        y, x = source.position(point, (30, 45), tuple(out.shape[2:]))
        (felt,) = torch.autograd.grad(out[0, :, y, x].square().sum() + out[0, 0, y, x], pixels, retain_graph=True)
        assert felt[0, :, int(point[0]), int(point[1])].abs().sum() > 0


def test_an_image_is_seen_whole_and_its_pixels_move_with_it():
    picture = source.see(Image.new("RGB", (200, 100)), source.Source("", None, 50, (0.5,) * 3, (0.5,) * 3), None)
    assert picture.size == (50, 100) and picture.input.shape == (1, 3, 50, 100)
    assert picture.seen(99, 0) == (49.75, 0.25)
    assert float(picture.input.max()) == float(picture.input.min()) == -1.0


@pytest.mark.parametrize("argv", [
    ["--op", "neighborhood", "--kernel-size", "7", "--dilation", "2", "--stride", "3"],
    ["--op", "window", "--window-size", "7", "--shift", "3", "--at", "0,0", "--theme", "dark"],
    ["--op", "window", "--window-size", "4x7", "--partition", "grid", "--map", "16x21", "--at", "0,0", "3,4"],
    ["--op", "halo", "--block-size", "8", "--halo-size", "3", "--stride", "2"],
    ["--op", "routed", "--regions", "7", "--topk", "4"],
    ["--op", "varied_window", "--window-size", "7", "--move", "2.5,-1", "--stretch", "0.5,0"],
    ["--op", "linear", "--map", "33x40"],
], ids=lambda argv: " ".join(argv[1:4]))  # fmt: skip
def test_a_pattern_is_drawn_without_a_model(argv, tmp_path, capsys):
    assert main(["pattern", *argv, "--out", str(tmp_path / "a.png")]) == 0
    assert is_picture(tmp_path / "a.png") and "positions" in capsys.readouterr().out


def test_a_pattern_says_how_many_keys_are_seen(tmp_path, capsys):
    argv = ["pattern", "--op", "halo", "--block-size", "8", "--halo-size", "3", "--at", "8,8", "27,27"]
    assert main([*argv, "--out", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "8,8 sees 196 of 784" in said and "27,27 sees 49 of 784" in said  # (8 + 2 * 3)^2; (28 - 24 + 3)^2


def test_the_zoo_is_drawn_for_light_and_dark_pages(tmp_path):
    for theme in ("light", "dark"):
        assert main(["zoo", "--theme", theme, "--out", str(tmp_path / f"{theme}.png")]) == 0
    light, dark = (np.asarray(Image.open(tmp_path / f"{theme}.png").convert("L")) for theme in ("light", "dark"))
    assert light[0, 0] > 250 and dark[0, 0] < 25 and light.shape == dark.shape
    assert len(gallery.PANELS) == 10


MAP = ["map", "--model", "gna_nano", "--size", "32"]
BAD = {
    "no command": ([], "required: map|sheet|layers|pattern|zoo"),
    "no model": (["layers"], "give --model NAME, or --checkpoint"),
    "unknown model": (["layers", "--model", "gna_giant"], "timm does not know; for example: gna_base"),
    "model without attention": (["layers", "--model", "resnet18"], "resnet18 has no layer that attends"),
    "no weights": (["layers", "--model", "gna_nano", "--pretrained"], "model gna_nano cannot be built"),
    "two weights": (["layers", "--model", "gna_nano", "--pretrained", "--checkpoint", "a"], "either --pretrained or"),
    "no checkpoint": (["layers", "--model", "gna_nano", "--checkpoint", "none.pth"], "--checkpoint none.pth does not"),
    "no run": (["layers", "--checkpoint", "/"], "--checkpoint / is no checkpoint and no run folder"),
    "no image": ([*MAP, "--image", "none.jpg"], "--image none.jpg: no such file"),
    "no picture": ([*MAP, "--image", __file__], "cannot read image"),
    "pixel outside": ([*MAP, "--at", "240,0"], "--at must be a pixel of the image, rows 0 to 239 and columns 0 to 319"),
    "negative pixel": ([*MAP, "--at=-1,0"], "rows 0 to 239 and columns 0 to 319, got -1,0"),
    "pixel's form": ([*MAP, "--at", "12"], "must be a row and a column as in 120,200, got '12'"),
    "unknown layer": ([*MAP, "--layer", "blocks"], "layer 'blocks' is unknown; there are stages.0.blocks.0.attn"),
    "layer's number": ([*MAP, "--layer", "14"], "layer must be a number from -14 to 13, got 14"),
    "head": ([*MAP, "--head", "8"], "head must be a number from 0 to 7, mean or all, got 8"),
    "head's form": ([*MAP, "--head", "first"], "must be a number from 0, mean or all, got 'first'"),
    "size": ([*MAP[:3], "--size", "0"], "must be a positive whole number, got '0'"),
    "channels": (["map", "--model", "fused_davit_tiny", "--size", "32", "--layer", "1"], "attends between channels"),
    "picture": ([*MAP, "--out", "/dev/null/a.png"], "cannot write /dev/null/a.png"),
    "pattern without op": (["pattern"], "--op"),
    "pattern of channels": (["pattern", "--op", "channel"], "op 'channel' has no pattern"),
    "pattern's argument": (["pattern", "--op", "halo", "--block-size", "8"], "halo_size is needed for this op"),
    "pattern too wide": (["pattern", "--op", "neighborhood", "--kernel-size", "29"], "29 * 1 = 29 > 28"),
    "pattern's query": (["pattern", "--op", "linear", "--at", "28,0"], "--at must lie on the map, rows 0 to 27"),
    "three queries": (["pattern", "--op", "linear", "--at", "0,0", "1,1", "2,2"], "--at takes one or two queries"),
    "pattern's number": (["pattern", "--op", "window", "--window-size", "a"], "must be a whole number from 0 on"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, capsys):
    argv, expected = BAD[name]
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = leaving.code
    error = capsys.readouterr().err
    assert code == 2
    assert expected in error and error.count("\n") == 1 and "Traceback" not in error


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    assert main(["layers", "--model", "fused_swin_tiny", "--pretrained"]) == 2
    said = "the published weights of fused_swin_tiny cannot be fetched: Name or service not known\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("command", ["map", "sheet", "layers", "pattern", "zoo"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        console(["visualize", command, "--help"])
    assert not leaving.value.code
    said = capsys.readouterr().out
    options = [line.split()[0] for line in said.splitlines() if line.startswith("  --")]
    assert len(options) >= 2 and said.startswith(f"usage: visionattn visualize {command}")


def test_the_door_under_tools_runs_as_a_script(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    argv = ["pattern", "--op", "window", "--window-size", "7"]
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "visualize.py"), *argv], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert is_picture(tmp_path / "pattern.png")
