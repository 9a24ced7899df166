"""Where a machine's results are kept."""

import torch

from visionattn.benchmark import records


def test_default_path_is_made_of_the_machine_and_the_kind():
    path = records.default_path(torch.device("cpu"), "kernels")
    assert path.parent.name == "benchmarks" and path.name.startswith("cpu_") and path.name.endswith("_kernels.csv")
