"""What a user gets who has no checkout: the wheel, built from the sdist, in a folder of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build"),
]


def _run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that is built from it; the checkout stays as it was."""
    tree = tmp_path_factory.mktemp("tree") / "visionattn"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("visionattn", "kernels", "configs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "build", "--no-isolation", "-o", tree.parent / "dist", tree, cwd=tree.parent)
    return tree.parent / "dist"


@pytest.fixture(scope="module")
def site(dist: Path) -> Path:
    """The wheel installed into a folder, beside what this environment has."""
    (wheel,) = dist.glob("*.whl")
    target = dist.parent / "site"
    _run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel, cwd=dist)
    return target


def _files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml"))
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_and_sdist_hold_every_module_and_recipe_as_real_files(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    sources = {member.name.partition("/")[2] for member in members}
    wanted = {f"visionattn/{name}" for name in _files("kernels", "configs")} | _files("visionattn")
    assert wanted <= inside and wanted <= sources
    assert not [name for name in inside if name.startswith(("kernels/", "configs/", "tests/"))]


def test_the_models_are_there_after_an_import(site, tmp_path):
    script = (
        "import sys, timm, visionattn, torch; "
        "print(visionattn.__file__, tuple(timm.create_model('gna_tiny').eval()(torch.randn(1, 3, 64, 64)).shape))"
    )
    said = _run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site))
    assert said.split(maxsplit=1) == [str(site / "visionattn" / "__init__.py"), "(1, 1000)\n"]


def test_the_console_script_trains_by_a_recipe_of_the_wheel(site, tmp_path):
    few = "--data.shapes_train 128 --data.shapes_val 20 --data.image_size 32 --schedule.epochs 1"
    few += " --schedule.warmup_epochs 0.1 --run.device cpu --run.dir run"
    command = [site / "bin" / "visionattn", "train", "--config", "shapes/gna_nano.yaml", *few.split()]
    assert "validation accuracy" in _run(*command, cwd=tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / "run" / "checkpoints" / "last").exists()
    assert "visionattn env" in _run(site / "bin" / "visionattn", "env", "--help", cwd=tmp_path, PYTHONPATH=str(site))
