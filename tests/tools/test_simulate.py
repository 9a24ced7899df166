"""The simulator from its command line: table, JSON, picture, and mistakes told in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visionattn.cli import main as console
from visionattn.simulate.cli import main

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ["--tile", "4x4", "--chunk", "2x8"]

FIELDS = {
    "map": list, "kernel": list, "stride": list, "dilation": list, "causal": list, "tile": list, "chunk": list,
    "tiling": str, "full_tile": list, "full_chunk": list, "tiles": int, "visited": int, "busiest": int,
    "sparsity": float, "flop_speedup": float, "speedup": float, "worst_tile_speedup": float, "wasted": float,
    "block_sparse": bool,
}  # fmt: skip


def settings(capsys, *argv):
    assert main([*argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)["settings"]


@pytest.mark.parametrize("argv", [
    ["--map", "64", "--kernel", "9", "--tile", "8", "--chunk", "4", "--causal", "0"],
    ["--map", "16x24", "--kernel", "7x5", "--dilation", "2x1", *GIVEN],
    ["--map", "8x8x8", "--kernel", "4", "--stride", "1x2x4", "--tile", "2x2x4", "--chunk", "2", "--static"],
    ["--map", "32x32", "--sparsity", "0.75", "--tile-size", "16", "--chunk-size", "8"],
])  # fmt: skip
def test_json_holds_every_field_of_its_type_on_one_two_and_three_axes(argv, capsys):
    found = settings(capsys, *argv)
    axes = argv[1].count("x") + 1
    assert found
    for setting in found:
        assert {name: type(value) for name, value in setting.items()} == FIELDS
        lists = [value for value in setting.values() if isinstance(value, list)]
        assert {len(value) for value in lists} == {axes}
        assert setting["tiling"] == ("static" if "--static" in argv else "dynamic")


def test_all_strides_are_in_the_json_and_the_table_leaves_out_those_that_gain_nothing(tmp_path, capsys):
    path = tmp_path / "deep" / "a.json"
    assert main(["--map", "32x32", "--kernel", "16", *GIVEN, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert [setting["stride"] for setting in json.loads(path.read_text())["settings"]] == [[s, s] for s in range(1, 17)]
    lines = [line.split() for line in printed.splitlines() if line.startswith("16x16")]
    assert "strides that gain nothing over a smaller one are left out" in printed
    assert lines[0][1] == "1x1" and lines[-1][1] == "4x4" and lines[-1][-1] == "yes"
    speedups = [float(line[-4].removesuffix("x")) for line in lines]
    assert speedups == sorted(set(speedups)) and speedups[-1] == 4.0
    assert list(path.parent.iterdir()) == [path]


def test_the_kernels_own_tiles_are_the_default(capsys):
    pytest.importorskip("triton", reason="our kernel's tiles need triton")
    from visionattn.kernels.neighborhood import tuning

    (setting,) = settings(capsys, "--map", "64x64", "--kernel", "13", "--stride", "4", "--head-dim", "128")
    tiles = tuning.forward_tiles((13, 13), (1, 1), 128, wide=False, bias=False)
    assert (setting["tile"], setting["chunk"]) == (list(tiles.tile), list(tiles.chunk))
    (wide,) = settings(capsys, "--map", "64x64", "--kernel", "13", "--stride", "4", "--dtype", "float32")
    assert wide["tile"] == list(tuning.forward_tiles((13, 13), (1, 1), 64, wide=True, bias=False).tile)


def test_best_stride_of_our_kernel_is_perfectly_block_sparse(capsys):
    pytest.importorskip("triton", reason="our kernel's tiles need triton")
    found = settings(capsys, "--map", "128x128", "--kernel", "32", "--stride", "best")
    assert found[0]["block_sparse"] and found[0]["stride"] == [8, 8]
    assert settings(capsys, "--map", "128x128", "--sparsity", "0.9", "--top", "1")[0]["block_sparse"]


def test_a_picture_is_drawn(tmp_path):
    pictures = [tmp_path / "one" / "a.png", tmp_path / "b.png"]
    assert main(["--map", "32x32", "--kernel", "16", "8x12", *GIVEN, "--plot", str(pictures[0])]) == 0
    assert main(["--map", "32x32", "--kernel", "16", "--stride", "1x4", *GIVEN, "--plot", str(pictures[1])]) == 0
    data = [path.read_bytes() for path in pictures]
    assert all(one.startswith(b"\x89PNG") and len(one) > 10000 for one in data) and len(data[0]) > len(data[1])
    assert not list(tmp_path.rglob("*.tmp"))


BAD = {
    "nothing": ([], "--map"),
    "no kernel": (["--map", "8x8"], "give either --kernel or --sparsity"),
    "both": (["--map", "8x8", "--kernel", "3", "--sparsity", "0.5"], "give either --kernel or --sparsity"),
    "map": (["--map", "8by8", "--kernel", "3"], "must be a positive whole number, or one an axis as in 128x96"),
    "four axes": (["--map", "8x8x8x8", "--kernel", "3"], "one an axis as in 128x96, got '8x8x8x8'"),
    "zero": (["--map", "8x0", "--kernel", "3"], "got '8x0'"),
    "kernel": (["--map", "8x8", "--kernel", "9"], "kernel must lie between 1 and map // dilation = 8, got 9"),
    "kernel's axes": (["--map", "8x8", "--kernel", "3x3x3"], "kernel must be one number or 2, one an axis of the map"),
    "stride": (["--map", "8x8", "--kernel", "3", "--stride", "4"], "stride must lie between 1 and kernel = 3, got 4"),
    "stride's name": (["--map", "8x8", "--kernel", "3", "--stride", "most"], "got 'most'"),
    "dilation": (["--map", "8x8", "--kernel", "3", "--dilation", "3"], "map // dilation = 2, got 3"),
    "dilation of a search": (["--map", "8x8", "--sparsity", "0.5", "--dilation", "9"], "map // dilation = 0"),
    "causal axis": (["--map", "8x8", "--kernel", "3", "--causal", "2"], "--causal must name axes from 0 to 1, got 2"),
    "half a tiling": (["--map", "8x8", "--kernel", "3", "--tile", "4x4"], "a tile and a chunk go together"),
    "tile's axes": (["--map", "64", "--kernel", "3", *GIVEN], "tile must be one number or 1"),
    "sizes alone": (["--map", "8x8", "--kernel", "3", "--tile-size", "4", "--chunk-size", "4"], "--stride best"),
    "size": (["--map", "8x8", "--sparsity", "0.5", "--tile-size", "6", "--chunk-size", "4"], "power of two"),
    "static": (["--map", "8x8", "--kernel", "3", "--static"], "our kernel's chunks are not static"),
    "ours in 3-D": (["--map", "8x8x8", "--kernel", "3"], "our kernel is for maps of 2 axes, not 3"),
    "ours causal": (["--map", "8x8", "--kernel", "3", "--causal", "0"], "our kernel has no causal axes"),
    "head dim": (["--map", "8x8", "--kernel", "3", "--head-dim", "300"], "--head-dim must lie between 8 and 256"),
    "sparsity": (["--map", "8x8", "--sparsity", "90"], "must lie between 0 and 1, got '90'"),
    "no such sparsity": (["--map", "4x4", "--sparsity", "0.999", *GIVEN], "no kernel on 4x4 leaves a sparsity of"),
    "picture": (["--map", "8x8", "--kernel", "3", *GIVEN, "--plot", "/dev/null/a.png"], "cannot write /dev/null/a.png"),
    "json": (["--map", "8x8", "--kernel", "3", *GIVEN, "--json", "/dev/null/a.json"], "cannot write /dev/null/a.json"),
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


def test_the_console_script_knows_it(capsys):
    assert console(["simulate", "--map", "8x8", "--kernel", "3", "--stride", "1", *GIVEN]) == 0
    assert "realistic" in capsys.readouterr().out


def test_the_door_under_tools_runs_as_a_script(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, str(ROOT / "tools" / "simulate.py"), "--map", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "visionattn simulate: error: give either --kernel or --sparsity\n"
