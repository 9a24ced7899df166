"""Other launch options are told with what they take, and none that spills."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_options_that_do_not_spill_are_told_for_a_card_that_is_not_there() -> None:
    pytest.importorskip("triton", reason="needs triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "benchmarks/sweep_options.py", "--op", "window", "--group", "tiny", "--static", "90"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    cases = done.stdout.split("\nwindow ")
    assert len(cases) == 2
    for case in cases:
        usual, *others = case.splitlines()[1:]
        assert usual.startswith("  as it is: ") and any("num_warps=" in line for line in others)
        spilled = dict(re.findall(r"(\w+) \d+ registers, (\d+) B spilled", usual))
        for name, more in re.findall(r"(\w+) \d+ registers, (\d+) B spilled", "\n".join(others)):
            assert int(more) <= int(spilled[name])
    for cap, registers in re.findall(r"maxnreg=(\d+): \w+ (\d+) registers", done.stdout):
        assert int(registers) <= int(cap)
