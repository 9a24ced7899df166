"""``visionattn train-seg``: trains a segmentor with mmsegmentation. With no options: gna_nano on `shapes` scenes."""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visionattn import recipes
from visionattn.arguments import Parser, positive
from visionattn.training.errors import Interrupted, UserError, first_line, one_line

from . import stack

DEFAULT = recipes.FOLDER / "segmentation" / "upernet_gna_nano_shapes.py"
PICTURES = "predictions.png"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake in the options or data, 130 or 143 after a signal."""
    args = _parser().parse_args(argv)
    try:
        stack.load_mmseg()
        from . import plugin  # noqa: F401  registers the plug-in, which takes mmsegmentation

        run(args)
    except UserError as error:
        print(f"visionattn train-seg: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"visionattn train-seg: {stop}; saved, continue with --resume auto", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("visionattn train-seg: stopped before the first iteration; there was nothing to save", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="visionattn train-seg",
        description="Trains and evaluates segmentors with mmsegmentation. With no options: gna_nano with UPerNet on "
        "generated scenes, on a CPU in minutes. configs/segmentation has the others.",
    )
    add = parser.add_argument
    add("config", type=Path, nargs="?", default=DEFAULT, help="a config of mmengine (default: the generated scenes)")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings",
        help="change the config, as in model.backbone.drop_path=0.1 train_dataloader.batch_size=8")  # fmt: skip
    add("--data-root", metavar="DIR", help="folder of the data set")
    add("--checkpoint", metavar="PATH",
        help="begin with these weights of the backbone: a run of visionattn train, or a file of weights")  # fmt: skip
    add("--load", type=Path, metavar="FILE",
        help="begin with these weights of a segmentor; its heads' last layers are new for other classes")  # fmt: skip
    add("--resume", metavar="auto|PATH", help="continue the last run of this config, a run folder, or a checkpoint")
    add(
        "--eval",
        type=Path,
        metavar="FILE",
        help="only evaluate this checkpoint, or the last of this run folder, on val_dataloader",
    )
    add("--run-dir", type=Path, metavar="DIR", help="(default: runs/seg-CONFIG, numbered where it is taken)")
    add("--iterations", type=positive(int), metavar="N", help="train so long; schedules follow")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto is what the config says, but bf16 on a GPU (default: %(default)s)")  # fmt: skip
    add("--compile", nargs="?", const="default", choices=("default", "reduce-overhead"), metavar="MODE",
        help="train backbone and heads under torch.compile; reduce-overhead replays CUDA graphs, for CPUs that are "
        "slower than the GPU (default without a value: default)")  # fmt: skip
    add("--results", type=Path, metavar="CSV",
        help="add a line to this file: accuracy, time of an iteration, memory, versions")  # fmt: skip
    add("--threads", type=positive(int), metavar="N", help="CPU threads (default: PyTorch's)")
    add("--pictures", type=int, default=6, metavar="N", help="validation pictures drawn at the end (default: 6)")
    return parser


def run(args: argparse.Namespace) -> dict[str, float]:
    """Train, or evaluate, as the options say.

    Returns:
        The last evaluation, in percent: mIoU, mAcc, aAcc and ``IoU.<class>``.

    Raises:
        UserError: for a mistake in the options, the config, the data or a checkpoint.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    from . import results
    from .options import override, read_config
    from .runner import StopCleanly

    if args.results and args.eval:
        raise UserError("--results is of training runs; --eval trains nothing")
    config = read_config(args.config)
    settings = list(args.settings)
    if args.iterations is not None:
        settings.append(f"train_cfg.max_iters={args.iterations}")
    if args.checkpoint is not None:
        settings += [f"model.backbone.checkpoint={args.checkpoint!r}", "model.backbone.pretrained=False"]
    override(config, settings)
    if args.data_root is not None:
        _set_data_root(config, args.data_root)
    if sum(value is not None for value in (args.resume, args.load, args.eval)) > 1:
        raise UserError("give one of --resume, --load and --eval")
    _set_device(config, args)
    folder, config.load_from, config.resume = _places(args)
    config.work_dir = str(folder)
    config.launcher = "pytorch" if "RANK" in os.environ else "none"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    _quiet()
    kept = results.opened(args.results) if args.results else None
    begun = time.perf_counter()
    runner = _build(config, train=args.eval is None)
    stop = StopCleanly()
    try:
        if args.eval is None:
            _check_heads(config, runner)
            runner.register_hook(stop)
            runner.train()
            found = getattr(runner.train_loop, "metrics", None) or runner.val_loop.run()
        else:
            found = runner.test()
    finally:
        stop.give_back()
        _end_workers(runner)
    if runner.rank == 0:
        if kept is not None:
            results.keep(kept, runner, args.config.stem, found, time.perf_counter() - begun)
        _finish(runner, found, folder, args, time.perf_counter() - begun)
    return found


def _finish(runner: Any, found: dict[str, float], folder: Path, args: argparse.Namespace, seconds: float) -> None:
    from .pictures import draw_predictions

    per_class = {key.removeprefix("IoU."): value for key, value in found.items() if key.startswith("IoU.")}
    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("class", "iou"), *((name, f"{value:.2f}") for name, value in per_class.items())])
    said = f"mIoU {found['mIoU']:.2f} %, pixel accuracy {found['aAcc']:.2f} %, per class {folder / 'classes.csv'}"
    if args.pictures > 0:
        loader = runner.val_dataloader if args.eval is None else runner.test_dataloader
        model = getattr(runner.model, "module", runner.model)
        draw_predictions(model, loader.dataset, args.pictures, folder / PICTURES)
        said += f", pictures {folder / PICTURES}"
    print(f"done in {seconds:.0f} s: {said}")


def _end_workers(runner: Any) -> None:
    """Workers that outlive the loops would be waited for, 5 s each, when the process ends."""
    for name in ("_train_loop", "_val_loop", "_test_loop"):
        loader = getattr(getattr(runner, name, None), "dataloader", None)
        if loader is not None:
            loader._iterator = None  # persistent workers end with what iterates over them


def _set_data_root(config: Any, root: str) -> None:
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = config.get(name) and config[name].dataset
        if dataset:
            if "data_root" not in dataset:
                raise UserError(f"--data-root is {root}, but {dataset.type} is generated and has none")
            dataset.data_root = root


def _set_device(config: Any, args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no usable GPU; cpu or auto is allowed here")
    on_gpu = torch.cuda.is_available() and args.device != "cpu"
    if not on_gpu:
        stack.use_cpu()
    if args.precision != "auto" or on_gpu:
        precision = args.precision if args.precision != "auto" else "bf16"
        config.model.precision = precision
    if args.compile:
        config.model.backbone.compile, config.model.backbone.compile_mode = True, args.compile


def _places(args: argparse.Namespace) -> tuple[Path, str | None, bool]:
    """(the run's folder, the checkpoint to begin with or None, whether to continue it)."""
    from .runner import newest

    base = Path("runs") / f"seg-{'shapes' if args.config == DEFAULT else args.config.stem}"
    taken = [base] if base.exists() else []
    while taken and (following := base.with_name(f"{base.name}-{len(taken) + 1}")).exists():
        taken.append(following)
    free = base.with_name(f"{base.name}-{len(taken) + 1}") if taken else base
    if args.resume == "auto":
        for folder in [args.run_dir] if args.run_dir else taken[::-1]:
            if found := newest(folder):
                return folder, str(found), True
        return args.run_dir or free, None, False
    given = args.eval or args.load or (Path(args.resume) if args.resume else None)
    file = given
    if given is not None and given.is_dir():
        file = newest(given)
        if file is None:
            raise UserError(f"{given} holds no checkpoint (iter_N.pth)")
    elif given is not None and not given.is_file():
        raise UserError(f"checkpoint {given} does not exist")
    if args.resume:
        return args.run_dir or file.parent, str(file), True
    folder = args.run_dir or free
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir: {folder} is a file; it must be a folder, or not there yet")
    if args.eval is None and newest(folder):
        raise UserError(f"--run-dir: {folder} already holds a run; continue it with --resume auto, or name another")
    return folder, str(file) if file else None, False


def _build(config: Any, train: bool) -> Any:
    """The Runner, with all of its parts built, so that every mistake in the config shows before the first iteration."""
    from .runner import SceneRunner

    if not train:
        config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
        config.test_cfg = config.get("test_cfg") or dict(type="TestLoop")
        for name in ("train_dataloader", "train_cfg", "optim_wrapper", "val_dataloader", "val_cfg", "val_evaluator"):
            config.pop(name, None)
        config.param_scheduler = None
        config.default_hooks.checkpoint = None  # without training it has nothing to save, and asks for the best score
    try:
        runner = SceneRunner.from_cfg(config)
        for part in ("train_loop", "val_loop") if train else ("test_loop",):
            getattr(runner, part)
        return runner
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ImportError, IndexError) as error:
        reason = first_line(error.args[0] if error.args else error)
        raise UserError(f"the config cannot be built: {reason}") from None


def _check_heads(config: Any, runner: Any) -> None:
    """Heads that fit neither classes nor maps fail much later, and in words of their own."""
    from .data import classes_of

    dataset = runner.train_dataloader.dataset
    maps = getattr(getattr(runner.model, "module", runner.model).backbone, "channels", None)
    count = len(classes_of(dataset))
    if neck := config.model.get("neck"):
        if maps and list(neck.in_channels) != maps:
            raise UserError(f"model.neck.in_channels is {list(neck.in_channels)}, but the backbone's maps have {maps}")
        maps = None
    for name in ("decode_head", "auxiliary_head"):
        head = config.model.get(name)
        for part in head if isinstance(head, list) else [head] if head else []:
            if part.num_classes != count:
                raise UserError(
                    f"model.{name}.num_classes is {part.num_classes}, but {type(dataset).__name__} has {count} classes"
                )
            chosen, given = _listed(part.get("in_index", -1)), _listed(part.in_channels)
            if maps and given != [maps[i] for i in chosen]:
                raise UserError(
                    f"model.{name}.in_channels is {given}, but the backbone's maps {chosen} of "
                    f"{config.model.backbone.get('name')} have {[maps[i] for i in chosen]} channels"
                )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _quiet() -> None:
    """Remarks of libraries to their own developers, which a user can do nothing about."""
    for message in (".*find_loader.*", ".*avg_non_ignore.*", ".*pkg_resources.*"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("mmengine").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
