"""What holds for the whole tree: which way imports point, how it is packaged, what the README promises, house rules."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()

# Every package may import those to its left; the bare package registers the models.
ORDER = (
    *("kernels", "layers", "models", "", "training", "segmentation", "detection", "simulate", "visualize", "benchmark"),
    *("validate", "predict", "export", "cli", "__main__", "tools"),
)


def source_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


# The kernels are read where they lie, not through the link.
PACKAGE = [path for path in source_files("visionattn") if "kernels" not in path.relative_to(ROOT).parts]
CODE = [*PACKAGE, *source_files("kernels", "tools", "benchmarks")]


def identify(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] in ("visionattn", "tools", "benchmarks") else ("visionattn", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Absolute names of everything a module imports, wherever in it the import stands."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}" if base else above
            # `from package import name` imports the package, and package.name where that is a module. The bare
            # visionattn is left out: taking a subpackage from it says nothing about the rest of what it registers.
            names.update([f"{base}.{alias.name}" for alias in node.names] + [base] * (base != "visionattn"))
    return names


def level(name):
    """The place in ORDER of an absolute module name; modules beside the packages stand just above the models."""
    parts = name.split(".")
    if parts[0] in ("tools", "benchmarks"):
        return ORDER.index("tools")
    part = parts[1] if len(parts) > 1 else ""
    return ORDER.index(part) if part in ORDER else ORDER.index("")


def ours(path):
    """What a module imports from this project, without the attributes it takes from the package itself."""
    names = {name for name in imported(path) if name.split(".")[0] in ("visionattn", "kernels", "tools")}
    return {name for name in names if not name.startswith("visionattn.__")}


@pytest.mark.parametrize("path", CODE, ids=identify)
def test_imports_point_one_way(path):
    name = module_name(path)
    wrong = {other for other in ours(path) if level(other) > level(name)}
    assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", source_files("kernels"), ids=identify)
def test_kernels_need_torch_and_triton_alone(path):
    known = set(sys.stdlib_module_names) | {"torch", "triton"}
    foreign = {name for name in imported(path) if name.split(".")[0] not in known}
    assert not {name for name in foreign if not name.startswith("visionattn.kernels")}


def test_the_bare_name_kernels_raises_a_clear_import_error():
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: import visionattn.kernels" in done.stderr


def test_the_kernels_are_linked_into_the_package():
    link = ROOT / "visionattn" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"


def test_a_wheel_holds_every_package():
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    expected = {module_name(path) for path in PACKAGE if path.name == "__init__.py"}
    expected |= {module_name(path) for path in source_files("kernels") if path.name == "__init__.py"}
    assert set(found) == expected
    assert {module_name(path.parent / "__init__.py") for path in [*PACKAGE, *source_files("kernels")]} <= expected


def test_console_script_leads_to_the_tools(capsys):
    module, _, name = PROJECT["project"]["scripts"]["visionattn"].partition(":")
    main = getattr(importlib.import_module(module), name)
    with pytest.raises(SystemExit) as leaving:
        sys.exit(main(["--help"]))
    assert not leaving.value.code
    printed = capsys.readouterr().out
    assert "train" in printed and "benchmark" in printed


def test_every_extra_is_there():
    assert set(PROJECT["project"]["optional-dependencies"]) == {"data", "seg", "det", "export", "wandb", "dev", "all"}


def test_version_is_said_once_and_the_changelog_knows_it():
    version = importlib.import_module("visionattn").__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "visionattn.__version__"}
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_readme_commands_name_files_that_exist():
    text = "\n".join(blocks("(?:bash|sh)"))
    paths = re.findall(r"(?<![\w/.])((?:configs|tools|benchmarks|tests|kernels|visionattn)/[\w./-]+\.\w+)", text)
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_readme_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README) + re.findall(r'src="(?!https?:)([^"]+)"', README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_readme_python_examples_run():
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "visionattn" in namespace
    (mixer,) = (block for block in blocks("python") if "class TwoScaleAttention" in block)
    assert mixer.count("\n") < 60 and namespace["logits"].shape == (1, 10)


def test_ci_runs_the_readme_test_command():
    commands = [line for block in blocks("(?:bash|sh)") for line in block.splitlines() if "pytest" in line]
    assert commands
    assert commands[0] in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", CODE, ids=identify)
def test_no_text_is_evaluated_and_no_pickle_is_trusted(path):
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), f"line {call.lineno}: {name}"
        if name == "torch.load":
            safe = [k.value for k in call.keywords if k.arg == "weights_only"]
            assert safe and isinstance(safe[0], ast.Constant) and safe[0].value is True, f"line {call.lineno}"


@pytest.mark.parametrize("path", [*CODE, *source_files("tests")], ids=identify)
def test_files_are_short_and_finished_and_say_what_they_are(path):
    text = path.read_text()
    assert text.count("\n") < 400
    if path.parts[-2:] != ("tests", "test_house.py"):
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert ast.get_docstring(ast.parse(text)) or not text.strip()


@pytest.mark.parametrize("path", [path for path in CODE if not path.stem.startswith("_")], ids=identify)
def test_public_functions_and_classes_have_docstrings(path):
    undocumented = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            inside_a_kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            # A main is documented by its module.
            if not (inside_a_kernel or node.name == "main" or ast.get_docstring(node)):
                undocumented.append(node.name)
    assert not undocumented


def test_readme_tables_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "benchmarks" / "fill_readme.py")
    fill_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill_readme)
    assert fill_readme.fill(README) == README, "run python benchmarks/fill_readme.py"
