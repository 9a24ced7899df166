"""``visionattn train``: trains an image classifier. With no options at all: gna_nano on the generated set `shapes`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

import visionattn  # noqa: F401  registers the models

from . import checkpoint, logs
from .classification import Classification, cpu_threads
from .config import TrainConfig, validate
from .errors import Interrupted, UserError, one_line
from .loop import Trainer
from .options import parse, to_yaml

DESCRIPTION = (
    "Train an image classifier. With no options: gna_nano on the generated data set 'shapes', on a CPU in minutes."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake in the options or data, 130 or 143 after a signal."""
    rank = int(os.environ.get("RANK", 0))
    try:
        config = parse(TrainConfig, sys.argv[1:] if argv is None else argv, "visionattn train", DESCRIPTION)
        validate(config)
        run(config)
    except UserError as error:
        if rank == 0:
            print(f"visionattn train: error: {one_line(error)}", file=sys.stderr)
        elif error.while_training:  # before that, every process says the same
            print(f"visionattn train: rank {rank}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if rank == 0:
            print(f"visionattn train: {stop}; saved, continue with --resume auto", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("visionattn train: stopped before the first step; there was nothing to save", file=sys.stderr)
        return 130
    return 0


def run(config: TrainConfig) -> dict[str, float]:
    """Train as the options say.

    Returns:
        The last evaluation: val_loss, top1 and top5 (%).

    Raises:
        UserError: for a mistake in the options, the data or the checkpoint to resume.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    console = Console()
    folder, resume = _run_folder(config)
    accelerator = _accelerator(config)
    device = accelerator.device
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs bandwidth, finds no nondeterminism
        torch.backends.cudnn.benchmark = False
    set_seed(config.run.seed)
    with cpu_threads(config.run.threads):
        task = Classification(config, accelerator)
        trainer = Trainer(
            config, task, accelerator, folder, console if accelerator.is_main_process else Console(quiet=True)
        )
        if resume is not None:
            trainer.restore(resume)
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if resume is not None and resume.parent == (folder / "checkpoints").resolve():
                checkpoint.rewind(resume)
            logs.describe_run(folder, to_yaml(config), device)
            millions = sum(p.numel() for p in task.model.parameters()) / 1e6
            console.print(
                f"{config.model.name} ({millions:.2f} M parameters) on "
                f"{task.sizes()} images of {len(task.classes)} classes, "
                f"{trainer.epochs} epochs of {task.steps_per_epoch} steps, on {device}"
                + (f", from step {trainer.step}" if resume else "") + f"; folder {folder}",
                highlight=False, soft_wrap=True)  # fmt: skip
        accelerator.wait_for_everyone()
        begun = time.perf_counter()
        try:
            found = trainer.train()
        except UserError as error:
            error.while_training = True
            raise
    if accelerator.is_main_process:
        console.print(
            f"done in {time.perf_counter() - begun:.0f} s: validation accuracy {found['top1']:.2f} % "
            f"(top-5 {found['top5']:.2f} %, loss {found['val_loss']:.4f}, {found['val_images']} images); "
            f"curves {folder / 'curves.png'}, checkpoint {folder / 'checkpoints' / 'last'}",
            highlight=False, soft_wrap=True)  # fmt: skip
    if accelerator.num_processes > 1:  # or a process that still talks to the others dies as they leave
        accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()
    return found


def _accelerator(config: TrainConfig) -> Accelerator:
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda, but PyTorch finds no usable GPU; cpu or auto is allowed here")
    on_gpu = torch.cuda.is_available() and wanted != "cpu"
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UserError("run.precision is fp16, which needs a GPU; on a CPU fp32 and bf16 are allowed")
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=not on_gpu)


def _run_folder(config: TrainConfig) -> tuple[Path, Path | None]:
    """(the run's folder, the checkpoint to continue or None)."""
    named = Path(config.run.dir) if config.run.dir else None
    if config.resume not in ("none", "auto"):
        found = checkpoint.find(Path(config.resume))
        own = found.parent.parent if found.parent.name == "checkpoints" else None
        if named is not None and (own is None or named.resolve() != own):
            _require_free(named)
        return named or own or _free_folder(config), found
    if config.resume == "none":
        if named is not None:
            _require_free(named)
        return named or _free_folder(config), None
    candidates = [named] if named is not None else _taken_folders(config)[::-1]
    for folder in candidates:
        if (folder / "checkpoints" / "last").exists():
            return folder, checkpoint.find(folder)
    return named or _free_folder(config), None


def _require_free(folder: Path) -> None:
    if (folder / "checkpoints").exists():
        raise UserError(
            f"run.dir: {folder} already holds a run; continue it with --resume auto, or name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.dir: {folder} is a file; it must be a folder, or not there yet")


def _taken_folders(config: TrainConfig) -> list[Path]:
    base = Path("runs") / f"{config.data.dataset}-{config.model.name}"
    numbered = [base.with_name(f"{base.name}-{n}") for n in range(2, 10000)]
    taken = []
    for folder in [base, *numbered]:
        if not folder.exists():
            break
        taken.append(folder)
    return taken


def _free_folder(config: TrainConfig) -> Path:
    base = Path("runs") / f"{config.data.dataset}-{config.model.name}"
    taken = len(_taken_folders(config))
    return base if taken == 0 else base.with_name(f"{base.name}-{taken + 1}")
