"""What a bug report needs: versions, GPUs, which kernels run here and why the others do not, variables that matter.

``python -m visionattn`` and ``visionattn env`` print it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import visionattn
from visionattn.arguments import Parser
from visionattn.kernels import explain

PACKAGES = ("torch", "torchvision", "triton", "timm", "natten", "accelerate", "numpy")

# Environment variables that change what runs, and how.
VARIABLES = {
    "VISIONATTN_INTERPRET": "1: tensors on the CPU take the fused kernels too, under Triton's interpreter",
    "VISIONATTN_NEIGHBORHOOD_BACKEND": "fused, reference or natten for every neighborhood attention",
    "TRITON_INTERPRET": "1: Triton interprets kernels instead of compiling them",
    "TRITON_CACHE_DIR": "where compiled kernels are kept",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are",
    "CUDA_LAUNCH_BLOCKING": "1: every kernel is waited for",
    "NVIDIA_TF32_OVERRIDE": "0: float32 products are never rounded",
    "TIMM_FUSED_ATTN": "whether timm's own attention uses PyTorch's fused one",
    "TORCH_COMPILE_DISABLE": "1: torch.compile does nothing",
    "OMP_NUM_THREADS": "threads on the CPU",
}


# A typical call of each op: an image at the resolution of a first stage, heads of 32 channels. Shapes become tensors.
_MAP = (1, 56, 56, 2, 32)
_QKV = (_MAP, _MAP, _MAP)
_TABLE = (27, 32)
TYPICAL: dict[str, tuple[str, tuple, dict[str, Any]]] = {
    "neighborhood_attention": ("kernel 7", _QKV, {"kernel_size": 7}),
    "window_attention": ("shifted windows of 7", _QKV, {"window_size": 7, "shift": 3}),
    "halo_attention": ("blocks of 8, halo 3", (*_QKV, 8, 3, _TABLE, _TABLE), {}),
    "varied_window_attention": ("windows of 7", (*_QKV, 7, (1, 8, 8, 2, 4)), {}),
    "routed_attention": ("4 of 7x7 regions", (*_QKV, (1, 49, 4)), {"regions": 7}),
    "channel_attention": ("3 groups of 32 channels", ((1, 56, 56, 96),) * 3, {"groups": 3}),
    "linear_attention": ("the whole map", _QKV, {}),
    "depthwise_conv": ("filters of 7", ((1, 56, 56, 96), (96, 1, 7, 7)), {}),
}


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in names}


def git_revision() -> str | None:
    """The revision of the checkout that this package is run from; None for an installed one."""
    here = Path(__file__).resolve().parent
    if not (here / "kernels").is_symlink():  # as in a checkout alone: a folder around may be another project's
        return None
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else None


def kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What :func:`visionattn.kernels.explain` says of a typical call of every op on ``device``: op -> its answer."""

    def make(op: str, argument: Any) -> Any:
        if not isinstance(argument, tuple):
            return argument
        routes = op == "routed_attention" and len(argument) == 3
        return torch.zeros(argument, device=device, dtype=torch.long if routes else dtype)

    said = {}
    for op, (setting, arguments, options) in TYPICAL.items():
        try:
            answer = str(explain(op, *(make(op, argument) for argument in arguments), **options))
        except Exception as error:  # a report must not fail over what it reports
            answer = f"{op}: {type(error).__name__}: {error}"
        head, *rest = answer.splitlines()
        said[op] = "\n".join([f"{head}   ({setting})", *rest])
    return said


def report() -> str:
    """The whole report, a text of some forty lines."""
    revision = git_revision()
    lines = [
        f"visionattn {visionattn.__version__} at {Path(visionattn.__file__).parent}"
        + (f", git {revision}" if revision else ""),
        f"python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {version or 'not installed'}" for name, version in versions().items()),
        f"CUDA of torch: {torch.version.cuda or 'none'}, cuDNN: {torch.backends.cudnn.version() or 'none'}, "
        f"NVIDIA driver: {driver() or 'none'}",
        "",
        *_gpus(),
        "",
    ]
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    name = str(dtype).removeprefix("torch.")
    lines.append(f"typical calls, 56x56 positions, heads of 32 channels, on {device.type} in {name}:")
    lines += [f"  {line}" for answer in kernels(device, dtype).values() for line in answer.splitlines()]
    lines += ["", "environment variables:"]
    lines += [f"  {name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    unset = [name for name in VARIABLES if name not in os.environ]
    lines.append(f"  not set: {', '.join(unset)}")
    return "\n".join(lines)


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["no usable CUDA device: every op runs its reference on the CPU"]
    lines = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        shared = p.shared_memory_per_block_optin / 1024
        lines.append(
            f"cuda:{index}: {p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors, "
            f"{p.total_memory / 2**30:.0f} GiB, {shared:.0f} KiB of shared memory a block"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report."""
    parser = Parser(
        prog="visionattn env",
        description=__doc__.split("\n", 1)[0],
        epilog="environment variables:\n" + "\n".join(f"  {name}: {what}" for name, what in VARIABLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
