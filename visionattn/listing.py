"""What backbones there are: ``visionattn models`` and :func:`list_models`, read from timm's registry and docstrings."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import NamedTuple

import timm
from timm.models import get_pretrained_cfg, model_entrypoint

from visionattn import models  # registers them
from visionattn.arguments import Parser

_HOME = f"{models.__name__}."


class Model(NamedTuple):
    """One backbone."""

    name: str  # for timm.create_model
    family: str
    description: str
    pretrained: tuple[str, ...]  # tags of the weights that pretrained=True can fetch, the default one first
    license: str  # of those weights


class Listing(list):
    """A list of :class:`Model` that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no model"
        wide = max(len(model.name) for model in self)
        weights = {model.name: _weights(model) for model in self}
        wider = max(map(len, weights.values()))
        lines, family = [], None
        for model in self:
            if model.family != family:
                family = model.family
                lines += ["", f"{family}: {families()[family]}"]
            lines.append(f"  {model.name:<{wide}}  {weights[model.name]:<{wider}}  {model.description}")
        return "\n".join(lines[1:])


def _weights(model: Model) -> str:
    many = f", {len(model.pretrained)} of them" if len(model.pretrained) > 1 else ""
    return f"weights: {model.license}{many}" if model.pretrained else ""


def families() -> dict[str, str]:
    """The families of backbones with one line on each: the modules of :mod:`visionattn.models` that register any."""
    found = {model_entrypoint(name).__module__ for name in _ours()}
    return {name.removeprefix(_HOME): _first_line(sys.modules[name]) for name in sorted(found)}


def list_models(filter: str = "", family: str | None = None, pretrained: bool = False) -> Listing:
    """The backbones of this package.

    Args:
        filter: wildcards that a name must match, as ``"*_tiny"``; all if empty.
        family: one of :func:`families`, or wildcards, as ``"inline_*"``; all if None.
        pretrained: only those whose weights ``pretrained=True`` can fetch.

    Returns a list of :class:`Model`, family by family, in the order in which a family's file has them. ``print`` of it
    gives a table.

    Raises:
        ValueError: where no family is named so.
    """
    known = families()
    if family is not None and not any(fnmatch(name, family) for name in known):
        raise ValueError(f"family must be one of {', '.join(known)}, or match one, got {family!r}")
    weights = timm.list_pretrained(exclude_filters="")
    found = Listing()
    for name in _ours():
        model = _describe(name, [full for full in weights if full.partition(".")[0] == name])
        if family is not None and not fnmatch(model.family, family):
            continue
        if fnmatch(name, filter or "*") and (model.pretrained or not pretrained):
            found.append(model)
    return found


def _ours() -> list[str]:
    """Names of the registered models that are defined here, file by file and in the order of the files."""
    entries = [model_entrypoint(name) for name in timm.list_models()]
    entries = [entry for entry in entries if entry.__module__.startswith(_HOME)]
    entries.sort(key=lambda entry: (entry.__module__, inspect.unwrap(entry).__code__.co_firstlineno))
    return [entry.__name__ for entry in entries]


def _describe(name: str, weights: Sequence[str]) -> Model:
    entry = model_entrypoint(name)
    default = get_pretrained_cfg(name)
    tags = [full.partition(".")[2] for full in weights]
    tags.sort(key=lambda tag: tag != getattr(default, "tag", None))
    license = (getattr(default, "license", None) or "licence unknown") if tags else ""
    return Model(name, entry.__module__.removeprefix(_HOME), _first_line(entry), tuple(tags), license)


def _first_line(documented: object) -> str:
    """The first paragraph of a docstring on one line, without its full stop."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split()).removesuffix(".")


def main(argv: Sequence[str] | None = None) -> int:
    """``visionattn models``: prints the table; exit code 2 where nothing is found."""
    parser = Parser(prog="visionattn models", description="Lists the backbones, for timm.create_model.")
    parser.add_argument("filter", nargs="?", default="", help="wildcards that a name must match, as '*_tiny'")
    parser.add_argument("--family", metavar="NAME", help=f"one of {', '.join(families())}; wildcards too")
    parser.add_argument("--pretrained", action="store_true", help="only those with weights that can be fetched")
    parser.add_argument("--names", action="store_true", help="names alone, one a line")
    arguments: argparse.Namespace = parser.parse_args(argv)
    try:
        found = list_models(arguments.filter, arguments.family, arguments.pretrained)
    except ValueError as error:
        parser.error(str(error))
    if not found:
        parser.error("no model is of that name, family and kind; 'visionattn models' lists all")
    print("\n".join(model.name for model in found) if arguments.names else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
