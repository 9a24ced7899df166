"""timm's own test suite (tests/test_models.py of its source distribution) on our models.

The distribution of the installed version is fetched once into pytest's cache. The suite runs in a pytest of its own,
and exactly the expected cases must have passed, so that it cannot pass by running nothing.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import visionattn

CONFIGURATION = "test_model_default_cfgs"
FEATURES = "test_model_forward_features"
FULL = {
    CONFIGURATION,
    "test_model_forward",
    "test_model_backward",
    FEATURES,
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_prune_intermediate_layers_contract",
}  # not TorchScript, which torch has deprecated
SMALLEST = ["gna_nano", "fused_davit_tiny", "biformer_tiny"]  # one a family
SMALLEST += ["fused_swin_tiny", "fused_maxvit_tiny", "fused_gcvit_xxtiny", "fused_halonet_h0"]
SMALLEST += ["nat_mini", "dinat_s_tiny"]  # DiNAT is NAT but for its dilations
SMALLEST += ["vsa_swin_tiny"]
SMALLEST += ["inline_pvt_tiny", "inline_deit_tiny"]  # and of the group that timm calls non-standard
ALL = ["gna_nano", "gna_tiny", "gna_small", "gna_base"]
SIZES = ("tiny", "small", "base", "large")
ALL += [f"fused_{family}_{size}" for family in ("swin", "maxvit", "davit") for size in SIZES]
ALL += [f"{family}_{size}" for family in ("nat", "dinat") for size in ("mini", "tiny", "small", "base")]
ALL += ["dinat_large", *(f"dinat_s_{size}" for size in ("tiny", "small", "base", "large"))]
ALL += [f"vsa_swin_{size}" for size in SIZES[:3]]
ALL += [f"fused_gcvit_{size}" for size in ("xxtiny", "xtiny", "tiny", "small", "base")]
ALL += [f"biformer_{size}" for size in ("tiny", "small", "base", "stl")]
ALL += [f"fused_halonet_h{n}" for n in range(8)] + ["fused_halonet26t", "fused_halonet50ts"]
ALL += [f"inline_{host}_{size}" for host in ("swin", "cswin", "deit") for size in ("tiny", "small", "base")]
ALL += [f"inline_pvt_{size}" for size in ("tiny", "small", "medium", "large")]


def _tests(model: str, tests: set[str]) -> set[tuple[str, str]]:
    """The cases of a model; those with a class token have another configuration test, and none of maps by stage."""
    if model == "inline_deit_base":
        tests = tests - {CONFIGURATION}  # which timm's suite leaves out for images of more than 320 pixels
    if model.startswith("inline_deit_"):
        tests = {f"{test}_non_std" if test == CONFIGURATION else test for test in tests - {FEATURES}}
    return {(test, model) for test in tests}


@pytest.fixture(scope="module")
def suite(request) -> Path:
    """test_models.py of the installed timm."""
    version = importlib.metadata.version("timm")
    folder = Path(request.config.cache.mkdir("timm-suite"))
    path = folder / version / "test_models.py"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as tmp:
        command = ["pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", tmp, f"timm=={version}"]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        archives = list(Path(tmp).glob("timm-*.tar.gz"))
        if done.returncode or not archives:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"timm {version}'s source distribution cannot be fetched: {said}")
        with tarfile.open(archives[0]) as archive:
            (Path(tmp) / path.name).write_bytes(archive.extractfile(f"timm-{version}/tests/test_models.py").read())
        shutil.move(Path(tmp) / path.name, path)
    return path


def _run(suite: Path, cases: set[tuple[str, str]], tmp_path: Path, one_tag: bool = False) -> None:
    """Runs cases (test, model) of the suite; fails unless exactly these have passed.

    With ``one_tag`` a model that has several sets of weights is taken with one of them.
    """
    report = tmp_path / "report.xml"
    here, root = Path(__file__).parent, Path(visionattn.__file__).parent.parent
    command = [sys.executable, "-m", "pytest", str(suite), "-c", os.devnull, "--rootdir", str(suite.parent)]
    command += ["-p", "no:cacheprovider", "-p", "timm_suite_plugin", "-W", "ignore", "-q", f"--junitxml={report}"]
    path = os.pathsep.join([str(here), str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TIMM_SUITE_CASES": " ".join(sorted(f"{test}:{model}" for test, model in cases))}
    environment |= {"TORCH_BACKEND": "visionattn", "TIMEOUT": "3600", "PYTHONPATH": path}
    environment |= {"TIMM_SUITE_ONE_TAG": "1" if one_tag else ""}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    passed = [
        case.get("name")
        for case in ElementTree.parse(report).iter("testcase")
        if not {child.tag for child in case} & {"failure", "error", "skipped"}
    ]
    assert done.returncode == 0, done.stdout[-8000:]
    # names are test[1-model], test[model] or test[1-model.tag]
    found = [(name.split("[")[0], name.rstrip("]").split("[")[1].split("-")[-1].split(".")[0]) for name in passed]
    assert set(found) == cases  # a configuration case runs once a set of weights


def test_configurations_of_all_models_and_whole_suite_for_the_smallest_of_each_family(suite, tmp_path):
    configurations = [_tests(model, {CONFIGURATION}) for model in ALL]
    cases = set().union(*configurations, *(_tests(model, FULL) for model in SMALLEST))
    _run(suite, cases, tmp_path, one_tag=True)


@pytest.mark.slow
def test_configurations_of_every_set_of_weights(suite, tmp_path):
    _run(suite, set().union(*(_tests(model, {CONFIGURATION}) for model in ALL)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in ALL if name not in SMALLEST])
def test_whole_suite_for_the_others(suite, model, tmp_path):
    _run(suite, _tests(model, FULL), tmp_path)
