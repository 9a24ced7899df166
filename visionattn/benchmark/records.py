"""The CSV files that results are kept in: one a machine and kind, and what their columns are."""

import re
from pathlib import Path

import torch

from visionattn.training.records import ORIGIN, Records, machine_name, origin, read, revision

__all__ = ["Records", "default_path", "machine_name", "origin", "read", "revision"]

_MAP = ("op", "dtype", "batch", "height", "width", "heads", "dim")
_TIMES = ("p20_ms", "p50_ms", "p80_ms", "graph_p50_ms", "peak_mib", "config", "note", *ORIGIN)
KERNEL_KEY = (*_MAP, "kernel", "dilation", "stride", "implementation", "pass")
KERNEL_COLUMNS = (*KERNEL_KEY, *_TIMES)

WINDOW_KEY = (*_MAP, "window", "shift", "implementation", "pass")
WINDOW_COLUMNS = (*WINDOW_KEY, *_TIMES)

HALO_KEY = (*_MAP, "dim_v", "block", "halo", "stride", "implementation", "pass")
HALO_COLUMNS = (*HALO_KEY, *_TIMES)

ROUTING_KEY = (*_MAP, "topk", "regions", "implementation", "pass")
ROUTING_COLUMNS = (*ROUTING_KEY, *_TIMES)
CHANNEL_KEY = (*_MAP, "implementation", "pass")
CHANNEL_COLUMNS = (*CHANNEL_KEY, *_TIMES)

VARIED_KEY = (*_MAP, "window", "spread", "implementation", "pass")
VARIED_COLUMNS = (*VARIED_KEY, *_TIMES)

LINEAR_KEY = (*_MAP, "before", "implementation", "pass")
LINEAR_COLUMNS = (*LINEAR_KEY, *_TIMES)

DEPTHWISE_KEY = ("op", "dtype", "batch", "height", "width", "channels", "side", "implementation", "pass")
DEPTHWISE_COLUMNS = (*DEPTHWISE_KEY, *_TIMES)
KERNEL_RECORDS = {
    "neighborhood": (KERNEL_COLUMNS, KERNEL_KEY),
    "window": (WINDOW_COLUMNS, WINDOW_KEY),
    "halo": (HALO_COLUMNS, HALO_KEY),
    "routing": (ROUTING_COLUMNS, ROUTING_KEY),
    "channel": (CHANNEL_COLUMNS, CHANNEL_KEY),
    "varied_window": (VARIED_COLUMNS, VARIED_KEY),
    "linear": (LINEAR_COLUMNS, LINEAR_KEY),
    "depthwise": (DEPTHWISE_COLUMNS, DEPTHWISE_KEY),
}

MODEL_KEY = ("model", "pass", "batch", "size", "dtype", "compiled", "channels_last")
MODEL_COLUMNS = (
    *MODEL_KEY,
    "images_per_s",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_gib",
    "first_call_s",
    "parameters_m",
    "note",
    *ORIGIN,
)

# Models of timm before and after visionattn.fuse, training: also the milliseconds of a step on the device, and of
# attention in it.
FUSED_COLUMNS = (
    *MODEL_KEY,
    *("images_per_s", "p20_ms", "p50_ms", "p80_ms", "peak_gib", "first_call_s"),
    *("device_ms", "attention_ms", "note"),
    *ORIGIN,
)

# One line a setting: its time, that of our kernel at kernel = map and of SDPA over the whole map; speed-ups over the
# former, as measured and at most.
SIMULATOR_KEY = (*_MAP, "kernel", "dilation", "stride")
SIMULATOR_COLUMNS = (
    *SIMULATOR_KEY,
    "chunks_a_tile",
    "block_sparse",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "full_ms",
    "sdpa_ms",
    "flop_bound",
    "bound",
    "speedup",
    "note",
    *ORIGIN,
)

# The training loop beside its bare step.
LOOP_KEY = ("model", "batch", "size", "dtype", "compiled", "implementation")
LOOP_COLUMNS = (*LOOP_KEY, "images_per_s", "p20_ms", "p50_ms", "p80_ms", *ORIGIN)

DATA_KEY = ("implementation", "workers", "batch", "size", "augment")
UNDRAWN = ("_data", "_loop", "_camvid")  # files of a few numbers, which need no picture
DATA_COLUMNS = (*DATA_KEY, "images_per_s", "images_per_s_core", "p20", "p80", *ORIGIN)


def default_path(device: torch.device, kind: str) -> Path:
    """``benchmarks/nvidia_h200_kernels.csv``: the file of this machine's results of one kind."""
    slug = re.sub(r"[^a-z0-9]+", "_", machine_name(device).lower()).strip("_")
    return Path("benchmarks") / f"{slug}_{kind}.csv"
