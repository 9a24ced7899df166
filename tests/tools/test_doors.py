"""The scripts in tools/ are the subcommands of the same names."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from visionattn import cli

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.parametrize("name", ["validate", "predict", "export"])
def test_a_script_is_its_subcommand(name: str) -> None:
    spec = importlib.util.spec_from_file_location(f"door_{name}", TOOLS / f"{name}.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    assert door.main is importlib.import_module(cli.COMMANDS[name][0]).main
