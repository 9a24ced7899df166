"""Recipes: found from anywhere, a local file before them, and none of configs/ left out of the package."""

import os
import tomllib
from pathlib import Path

import pytest

from visionattn import recipes
from visionattn.training.config import TrainConfig
from visionattn.training.errors import UserError
from visionattn.training.options import parse

ROOT = Path(__file__).resolve().parents[1]


def test_the_recipes_are_linked_into_the_package_and_travel_with_it():
    link = ROOT / "visionattn" / "configs"
    assert link.is_symlink() and os.readlink(link) == "../configs"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["visionattn"]
    travelling = {path.resolve() for pattern in patterns for path in (ROOT / "visionattn").glob(pattern)}
    assert {path for path in (ROOT / "configs").rglob("*.*") if "__pycache__" not in path.parts} <= travelling


@pytest.mark.parametrize("name", ["shapes/gna_nano.yaml", "configs/shapes/gna_nano.yaml"])
def test_a_recipe_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.locate(name).samefile(ROOT / "configs" / "shapes" / "gna_nano.yaml")
    for argv in (["--config", name], [f"--config={name}"]):
        assert parse(TrainConfig, [*argv, "--schedule.epochs", "3"], "test", "").data.shapes_train == 6000


def test_a_local_file_comes_first_and_other_paths_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    Path("shapes/gna_nano.yaml").write_text("schedule: {epochs: 2}")
    assert parse(TrainConfig, ["--config", "shapes/gna_nano.yaml"], "test", "").schedule.epochs == 2
    for name in ("none.yaml", "/shapes/gna_nano.yaml", "../shapes/gna_nano.yaml", "shapes"):
        assert recipes.locate(name) == Path(name)


def test_a_name_that_is_no_recipe_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"shapes/gna_nano.yaml", "imagenet/gna_tiny.yaml"} <= set(recipes.names())
    with pytest.raises(UserError, match="no such file, and none of the recipes cifar10/gna_nano.yaml, "):
        parse(TrainConfig, ["--config", "shapes/gna_nan.yaml"], "test", "")
