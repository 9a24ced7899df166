"""What the tools with an ``argparse`` command line share: mistakes are told in one line, with exit code 2."""

import argparse
import json
from collections.abc import Callable
from typing import Any


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and leaves with exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(kind: type) -> Callable[[str], int | float]:
    """For ``type=`` of an argument: a number of this kind (int or float) above zero."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            allowed = "a positive whole number" if kind is int else "a positive number"
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return convert


def json_object(text: str) -> dict[str, Any]:
    """For ``type=``: a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object such as \'{{"stem_stride": 2}}\', got {text!r}')
    return value
