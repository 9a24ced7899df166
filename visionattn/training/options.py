"""From a command line and YAML files to a dataclass, with one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from visionattn import recipes

from .errors import UserError

Config = TypeVar("Config")


def build_parser(config_class: type, prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser whose options are the fields of a nest of dataclasses, ``--config`` and ``--print_config`` besides.

    Args:
        config_class: a dataclass whose fields are documented by the string literal below each.
        prog: the command's name in ``--help``.
        description: what the command does.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the options below, later ones win; or a recipe that came with the package, as "
        "shapes/gna_nano.yaml.",
    )
    parser.add_class_arguments(config_class)
    return parser


def parse(config_class: type[Config], argv: Sequence[str], prog: str, description: str) -> Config:
    """The options in ``argv`` over those of ``--config`` files over the dataclass's defaults.

    Raises:
        UserError: unknown option or key, wrong type, missing or malformed file; one line that names it.
        SystemExit: with code 0, after ``--help`` or ``--print_config`` printed.
    """
    parser = build_parser(config_class, prog, description)
    argv = _with_recipes(argv)
    for path in _config_files(argv):
        if not Path(path).is_file():
            raise UserError(f"--config {path}: no such file, and none of the recipes {', '.join(recipes.names())}")
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: not a YAML file: {_one_line(str(error))}") from None
        if not isinstance(content, dict):
            raise UserError(f"--config {path}: the file must hold options as 'key: value', but holds {content!r:.60}")
        for name in _sections(config_class):
            if not isinstance(content.get(name, {}), dict):
                raise UserError(
                    f"--config {path}: {name} must hold options as 'key: value', but is {content[name]!r:.60}"
                )
    try:
        namespace = parser.parse_args(list(argv))
        return _build(config_class, namespace)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise UserError(_explain(str(error), config_class)) from None


def to_yaml(config: Any) -> str:
    """A dataclass as YAML that ``--config`` reads back to an equal dataclass."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries of plain values (tuples become lists)."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        return [convert(item) for item in value] if isinstance(value, list | tuple) else value

    return convert(dataclasses.asdict(config))


def _build(config_class: type, namespace: Any) -> Any:
    """Fill the dataclass from jsonargparse's namespace, which has the same nesting."""
    values = {}
    for item in dataclasses.fields(config_class):
        value = namespace[item.name]
        section = _sections(config_class).get(item.name)
        values[item.name] = _build(section, value) if section else value
    return config_class(**values)


def _sections(config_class: type) -> dict[str, type]:
    """The fields that are dataclasses themselves."""
    factories = {item.name: item.default_factory for item in dataclasses.fields(config_class)}
    return {name: made for name, made in factories.items() if isinstance(made, type) and dataclasses.is_dataclass(made)}


def _with_recipes(argv: Sequence[str]) -> list[str]:
    """The arguments with the paths of the recipes that ``--config`` names."""
    found = list(argv)
    for i, argument in enumerate(argv):
        if argument.startswith("--config="):
            found[i] = f"--config={recipes.locate(argument.partition('=')[2])}"
        elif i and argv[i - 1] == "--config":
            found[i] = str(recipes.locate(argument))
    return found


def _config_files(argv: Sequence[str]) -> list[str]:
    files = [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]
    return files + [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument == "--config"]


def _keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for item in dataclasses.fields(config_class):
        keys.append(prefix + item.name)
        if section := _sections(config_class).get(item.name):
            keys += _keys(section, f"{prefix}{item.name}.")
    return keys


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _explain(message: str, config_class: type) -> str:
    """jsonargparse's message on one line, in the words of the other messages, with a near name for an unknown one."""
    unknown, known = None, _keys(config_class)
    if match := re.search(r"unrecognized arguments: --([\w.]+)", message):
        unknown, label = match[1], f"unknown option --{match[1]}"
    elif match := re.search(r"Option '([^']+)' is not accepted", message):
        unknown, label = match[1], f"unknown key '{match[1]}'"
    elif match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        unknown, label = f"{match[1]}.{match[2]}", f"unknown key '{match[1]}.{match[2]}'"
    if unknown is None:
        message = re.sub(r"Parser key \"([^\"]+)\":", r"\1:", _one_line(message))
        return re.sub(r"<class '([^']+)'>", r"\1", message)
    near = [key for key in known if key.split(".")[-1] == unknown.split(".")[-1]]  # in the wrong section
    near = near or difflib.get_close_matches(unknown, known, n=1, cutoff=0.6)
    return f"{label}; " + (f"did you mean {near[0]}?" if near else "--help lists the options")
