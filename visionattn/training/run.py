"""A run from its options to its end, and a command around it: the same for every task."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from rich.console import Console

import visionattn  # noqa: F401  registers the models

from . import checkpoint, logs
from .errors import Interrupted, UserError, one_line
from .loop import Task, Trainer
from .options import parse, to_yaml
from .recipe import Recipe
from .watch import Lost

Config = TypeVar("Config", bound=Recipe)


def command(
    name: str, description: str, config_class: type[Config], validate: Callable[[Config], None],
    run: Callable[[Config], object], argv: Sequence[str] | None,
) -> int:  # fmt: skip
    """Parse, check and run; mistakes are told in one line.

    Args:
        name: of the subcommand.
        description: what ``--help`` says.
        config_class: the options.
        validate: checks them.
        run: runs as they say.
        argv: the command line; None takes the process's.

    Returns:
        The exit code: 0, 1 where another process of the run is gone, 2 for a mistake in the options or data, 130 or 143
        after a signal.
    """
    prog, rank = f"visionattn {name}", int(os.environ.get("RANK", 0))
    try:
        config = parse(config_class, sys.argv[1:] if argv is None else argv, prog, description)
        validate(config)
        run(config)
    except UserError as error:
        if rank == 0:
            print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        elif error.while_training:  # before that, every process says the same
            print(f"{prog}: rank {rank}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Lost:
        return 1
    except Interrupted as stop:
        if rank == 0:
            print(f"{prog}: {stop}; saved, continue with --resume auto", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: stopped before the first step; there was nothing to save", file=sys.stderr)
        return 130
    return 0


def run_task(config: Config, make_task: Callable[[Config, Accelerator], Task]) -> dict[str, float]:
    """Train as the options say.

    Args:
        config: the options.
        make_task: what is trained, from the options and the devices.

    Returns:
        The last evaluation.

    Raises:
        UserError: for a mistake in the options, the data or the checkpoint to resume.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        Lost: where another process of the run is gone.
    """
    console = Console()
    folder, resume = _run_folder(config)
    accelerator = _accelerator(config)
    device, main = accelerator.device, accelerator.is_main_process
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs bandwidth, finds no nondeterminism
        torch.backends.cudnn.benchmark = False
    set_seed(config.run.seed)

    def say(line: str) -> None:
        if main:
            console.print(line, highlight=False, soft_wrap=True)

    with cpu_threads(config.run.threads):
        task = make_task(config, accelerator)
        trainer = Trainer(config, task, accelerator, folder, console if main else Console(quiet=True))
        if resume is not None:
            trainer.restore(resume)
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            if resume is not None and resume.parent == (folder / "checkpoints").resolve():
                checkpoint.rewind(resume)
            logs.describe_run(folder, to_yaml(config), device)
        for note in task.notes:
            say(f"note: {note}")
        millions = sum(p.numel() for p in task.model.parameters()) / 1e6
        processes = f" and {accelerator.num_processes - 1} more" if accelerator.num_processes > 1 else ""
        say(
            f"{config.model.name} ({millions:.2f} M parameters) on {task.sizes()} images of {len(task.classes)} classes"
            f", {trainer.epochs} epochs of {task.steps_per_epoch} steps, on {device}{processes}"
            + (f", from step {trainer.step}" if resume else "") + f"; folder {folder}")  # fmt: skip
        accelerator.wait_for_everyone()
        begun = time.perf_counter()
        try:
            found = trainer.train()
        except UserError as error:
            error.while_training = True
            raise
        seconds, model = time.perf_counter() - begun, trainer.judged()
        if main:
            say(
                f"done in {seconds:.0f} s: {task.finish(model, found, folder)}; "
                f"curves {folder / 'curves.png'}, checkpoint {folder / 'checkpoints' / 'last'}"
            )
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()
    return found


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Within the block PyTorch uses ``count`` threads for one operation; None leaves its choice."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _accelerator(config: Recipe) -> Accelerator:
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda, but PyTorch finds no usable GPU; cpu or auto is allowed here")
    on_gpu = torch.cuda.is_available() and wanted != "cpu"
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UserError("run.precision is fp16, which needs a GPU; on a CPU fp32 and bf16 are allowed")
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=config.run.timeout))
    precision = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=precision, cpu=not on_gpu, kwargs_handlers=[patience])


def _run_folder(config: Recipe) -> tuple[Path, Path | None]:
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


def _taken_folders(config: Recipe) -> list[Path]:
    base = Path("runs") / config.label()
    numbered = [base.with_name(f"{base.name}-{n}") for n in range(2, 10000)]
    taken = []
    for folder in [base, *numbered]:
        if not folder.exists():
            break
        taken.append(folder)
    return taken


def _free_folder(config: Recipe) -> Path:
    base = Path("runs") / config.label()
    taken = len(_taken_folders(config))
    return base if taken == 0 else base.with_name(f"{base.name}-{taken + 1}")
