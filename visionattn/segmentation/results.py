"""A line a run in a CSV file, so that backbones can be compared: accuracy, time of an iteration, memory."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from visionattn.training import records

KEY = ("config", "seed", "iterations", "compiled", "precision", "device")
COLUMNS = (*KEY, "miou", "pixel_accuracy", "ms_per_iteration", "data_ms", "memory_mib", "wall_s", "torch", "triton",
           "timm", "visionattn", "revision")  # fmt: skip


def opened(path: Path) -> records.Records:
    """The file's lines; raises UserError where it cannot be written or is another kind of file."""
    kept = records.Records(path, COLUMNS, KEY)
    kept.write()
    return kept


def keep(kept: records.Records, runner: Any, config: str, found: dict[str, float], seconds: float) -> None:
    """Adds a run that has ended; one of the same config, seed and length before it is replaced.

    Args:
        kept: what :func:`opened` gave.
        runner: mmengine's.
        config: its name.
        found: the last evaluation, in percent.
        seconds: that the run took, its evaluations included.
    """
    model = getattr(runner.model, "module", runner.model)
    device = next(model.parameters()).device
    origin = records.origin(device)
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    backbone = model.backbone
    kept.add(
        config=config, seed=runner.seed, iterations=runner.iter, device=origin["gpu"],
        compiled=backbone.compile_mode if getattr(backbone, "compiles", False) else "no",
        precision=getattr(model, "precision", "fp32"), miou=found["mIoU"], pixel_accuracy=found["aAcc"],
        ms_per_iteration=_median_ms(runner, "time"), data_ms=_median_ms(runner, "data_time"),
        memory_mib=memory and round(memory), wall_s=round(seconds),
        **{name: origin[name] for name in ("torch", "triton", "timm", "visionattn", "revision")})  # fmt: skip
    kept.write()


def _median_ms(runner: Any, name: str) -> float:
    """Of the second half of the iterations: what warms up is in the first."""
    history = runner.message_hub.get_scalar(f"train/{name}").data[0]
    return 1e3 * statistics.median(history[len(history) // 2 :])
