"""From a config file and a command line to mmengine's Config, with one clear line for every mistake."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg import registry as registries

from visionattn.recipes import locate
from visionattn.training.errors import UserError, first_line

KNOWN = ("MODELS", "DATASETS", "TRANSFORMS", "LOOPS", "HOOKS", "METRICS", "OPTIMIZERS", "PARAM_SCHEDULERS",
         "OPTIM_WRAPPERS", "OPTIM_WRAPPER_CONSTRUCTORS", "DATA_SAMPLERS", "VISUALIZERS", "VISBACKENDS")  # fmt: skip
DATALOADER = ("batch_size", "num_workers", "persistent_workers", "pin_memory", "drop_last", "prefetch_factor")
NEEDED = ("model", "train_dataloader", "val_dataloader", "val_evaluator", "train_cfg", "val_cfg", "optim_wrapper")


def read_config(path: Path) -> Config:
    """A config of mmengine with its ``_base_`` files; a recipe that came with the package is found by its name.

    Raises:
        UserError: where it is missing, cannot be run, or lacks a part that training needs.
    """
    path = locate(path)
    if not path.is_file():
        raise UserError(f"config {path}: no such file")
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        reason = first_line(error)
        raise UserError(f"config {path} cannot be read: {reason}") from None
    lacking = [name for name in NEEDED if config.get(name) is None]
    if lacking:
        raise UserError(f"config {path} has no {lacking[0]}; a config has {', '.join(NEEDED)}")
    return config


def override(config: Config, settings: Iterable[str]) -> None:
    """Put ``a.b.c=value`` settings into a config, each of which must be there or be an argument of what is built.

    Values are Python's literals, or strings. Steps of a path may be numbers of list entries. Schedules that end with
    the last iteration follow ``train_cfg.max_iters``, and so does how often a shorter run validates, unless it is set.

    Raises:
        UserError: for a setting without a value, a path that leads nowhere, or a value of another kind.
    """
    before = config.train_cfg.get("max_iters")
    given = set()
    for setting in settings:
        path, equals, text = setting.partition("=")
        given.add(path)
        if not equals or not path:
            raise UserError(f"setting {setting!r}: settings are written as model.backbone.name=gna_tiny")
        _set(config, path, _value(text))
    after = config.train_cfg.get("max_iters")
    if after != before and before and after:
        _follow(config, before, after)
        interval = config.train_cfg.get("val_interval")
        if interval and after < before and "train_cfg.val_interval" not in given:
            config.train_cfg.val_interval = max(1, interval * after // before)


def _follow(config: Config, before: int, after: int) -> None:
    """Schedules that ended with the last iteration do so again; in a shorter run the parts before are shorter too."""
    shrink = min(1.0, after / before)
    schedules = config.get("param_scheduler") or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        for edge in ("begin", "end"):
            if schedule.get(edge):
                schedule[edge] = after if schedule[edge] == before else max(1, int(schedule[edge] * shrink))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _set(config: Config, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    place, walked = config._cfg_dict, ""
    for step in steps:
        place, walked = _step(place, step, walked, path), f"{walked}{step}."
        if not isinstance(place, Mapping | list):
            raise UserError(f"setting {path}: {walked[:-1]} is {place!r}, which holds nothing further")
    if isinstance(place, list):
        _step(place, last, walked, path)
        place[int(last)] = value
        return
    if last not in place:
        allowed = _arguments(place)
        if last not in allowed:
            raise UserError(f"setting {path}: {walked[:-1] or 'the config'} has no {last!r}{_near(last, allowed)}")
    old = place.get(last)
    if not _fits(old, value):
        kind = "a section" if isinstance(old, Mapping) else f"{type(old).__name__} ({old!r})"
        raise UserError(f"setting {path}: must be of the kind of the config's value, {kind}, got {value!r}")
    place[last] = value


def _fits(old: Any, value: Any) -> bool:
    """Whether a value may stand where the config has another; a number may become one an axis."""
    if isinstance(old, bool):
        return isinstance(value, bool)
    if isinstance(old, int | float):
        return isinstance(value, int | float | list | tuple) and not isinstance(value, bool)
    if isinstance(old, str):
        return isinstance(value, str | None)
    return not isinstance(old, Mapping) or isinstance(value, Mapping | None)


def _step(place: Any, step: str, walked: str, path: str) -> Any:
    if isinstance(place, list):
        if not step.isdigit() or int(step) >= len(place):
            raise UserError(f"setting {path}: {walked[:-1]} has entries 0 to {len(place) - 1}, not {step!r}")
        return place[int(step)]
    if step not in place:
        raise UserError(f"setting {path}: {walked[:-1] or 'the config'} has no {step!r}{_near(step, place)}")
    return place[step]


def _near(name: str, known: Iterable[str]) -> str:
    known = [str(key) for key in known if not str(key).startswith("_")]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(known))}"


def _parameters(built: Any) -> list[str]:
    """Of a function, or a class and those that it hands its other arguments on to."""
    names: list[str] = []
    for part in inspect.getmro(built)[:-1] if inspect.isclass(built) else [built]:
        own = inspect.signature(part.__init__ if inspect.isclass(part) else part).parameters
        names += [name for name in own if name != "self"]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return names


def _arguments(section: Mapping) -> list[str]:
    """What a section of a config may hold: what it holds, and the arguments of what is built from it."""
    names = list(section)
    if "sampler" in section and "dataset" in section:
        names += DATALOADER
    kind = section.get("type")
    if isinstance(kind, str):
        found = (getattr(registries, name).get(kind) for name in KNOWN)
        for built in filter(None, found):
            names += _parameters(built)
    return [name for name in names if name not in ("args", "kwargs") or name in section]
