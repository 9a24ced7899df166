"""``visionattn export``: a trained model as ONNX, as a torch.export package, or as a folder that timm loads."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import visionattn  # noqa: F401  registers the models
from visionattn.arguments import Parser, json_object, positive
from visionattn.training.errors import UserError, one_line
from visionattn.training.files import aside, require_free
from visionattn.training.trained import Choice, Trained, load, locate

from . import formats
from .graph import BATCHES, Graph, trace
from .verify import Differs, verify

PROG = "visionattn export"
ONNX, PACKAGE = ".onnx", ".pt2"


def _size(text: str) -> tuple[int, int]:
    """``224`` or ``192x256``: height and width."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a size such as 224, or height x width such as 192x256, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a model for use elsewhere, and compares what was written with the model before it says\n"
        "done:\n"
        "  FILE.onnx  ONNX, run in onnxruntime; the batch and, as far as the model's code allows, height and width\n"
        "             are free\n"
        "  FILE.pt2   a torch.export package, loaded again; import visionattn before torch.export.load, so that it\n"
        "             finds the attention ops, which run on the fused kernels on a GPU\n"
        "  FOLDER     model.safetensors and config.json, which timm.create_model('local-dir:FOLDER',\n"
        "             pretrained=True) loads, with the names of the classes",
        epilog="Exit code: 0; 1 where what was written differs from the model (it is not kept); 2 for a mistake in\n"
        "the options or the model. Graphs hold float32 weights and take normalised images; mean, std, classes and\n"
        "sizes are in the ONNX file's metadata and in the package's about.json.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder, one of its checkpoints, a folder that this command wrote, a "
        "file of weights with --model, or a model's name (its published weights, or --untrained)")  # fmt: skip
    add("outputs", nargs="+", metavar="OUTPUT", type=Path, help="FILE.onnx, FILE.pt2 or FOLDER; one or several")
    add("--overwrite", action="store_true", help="replace outputs that are there (default: refuse)")
    add("--weights", choices=("auto", "ema", "raw"), default="auto",
        help="of a run: averaged or raw; auto: averaged ones if there are some (default: %(default)s)")  # fmt: skip
    add("--model", dest="architecture", metavar="NAME", help="architecture, for a bare file of weights")
    add("--kwargs", type=json_object, default={}, metavar="JSON",
        help="further arguments of timm.create_model, for files and names (default: none)")  # fmt: skip
    add("--untrained", action="store_true", help="fresh weights for a model's name (default: its published ones)")
    add("--classes", type=positive(int), metavar="N", help="classes of an untrained model (default: its own number)")
    add("--size", type=_size, metavar="N|HxW", help="image size to trace at (default: the model's own)")
    add("--sizes", choices=("auto", "dynamic", "fixed"), default="auto",
        help="heights and widths that the graph serves: auto: as many around --size as one path through the model's "
        "code does; dynamic: fail if that is one alone; fixed: that one (default: %(default)s)")  # fmt: skip
    add("--smallest", type=positive(int), default=32, metavar="N",
        help="height and width from which the graph has to serve sizes (default: %(default)s)")  # fmt: skip
    add("--tolerance", type=positive(float), default=1e-4, metavar="T",
        help="largest difference allowed between logits; times the largest logit if that is below 1 "
        "(default: %(default)s)")  # fmt: skip
    add("--threads", type=positive(int), metavar="N", help="CPU threads (default: PyTorch's choice)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 1 where an export differs from the model; 2 for the user's mistakes."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except UserError as error:
        print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Differs as error:
        print(f"{PROG}: failed: {error}; it is not kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace) -> None:
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # fresh weights are the same each time
    choice = Choice(args.architecture, args.kwargs, args.weights, args.untrained, args.classes,
                    args.size[0] if args.size else None)  # fmt: skip
    trained = load(locate(args.model, choice), choice)
    size = args.size or (trained.data.image_size, trained.data.image_size)
    graph = None
    if any(path.suffix in (ONNX, PACKAGE) for path in args.outputs):
        graph = trace(trained.model, size, args.sizes, args.smallest)
        print(f"traced {trained.name} at {size[0]}x{size[1]} in {graph.seconds:.0f} s; it serves {graph}", flush=True)
        if graph.fixed and args.sizes == "auto":
            print("  at other sizes the model takes another path through its code; --size traces another one")
    for path in args.outputs:
        write(trained, path, graph, size, args.tolerance, args.overwrite)


def _check(args: argparse.Namespace) -> None:
    for path in args.outputs:
        if path.suffix not in (ONNX, PACKAGE, "") and not path.is_dir():
            raise UserError(f"output {path}: {path.suffix} is none of {ONNX} and {PACKAGE}, nor is it a folder's name")
        require_free(path, "output", args.overwrite)
        if path.suffix in (ONNX, PACKAGE) and path.is_dir():
            raise UserError(f"output {path} is a folder; {path.suffix} names a file")
    if len(set(args.outputs)) < len(args.outputs):
        raise UserError("an output is named twice")
    if args.classes and not args.untrained:
        raise UserError("--classes is for --untrained: trained models say their number of classes")
    if any(path.suffix == ONNX for path in args.outputs):
        formats.require_onnx()


def write(trained: Trained, path: Path, graph: Graph | None, size: tuple[int, int], tolerance: float,
          overwrite: bool) -> None:  # fmt: skip
    """Write one output aside, compare it with the model, and only then give it its name.

    Raises:
        Differs: where it is not what the model is.
        UserError: where it cannot be made or written.
    """
    with aside(path) as temporary:
        if path.suffix == ONNX:
            exported, what = formats.to_onnx(trained, graph, temporary), "ONNX in onnxruntime"
        elif path.suffix == PACKAGE:
            exported, what = formats.to_package(trained, graph, temporary), "package, loaded again"
        else:
            exported, what = formats.to_folder(trained, temporary), "folder, loaded by timm"
        print(f"{path} ({what}):", flush=True)
        shapes = graph.shapes() if graph is not None else [(batch, 3, *size) for batch in BATCHES]
        try:
            verify(trained.model, exported, shapes, tolerance, print)
        except Differs as error:
            raise Differs(f"{path} {error}") from None
    megabytes = sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file()) / 1e6
    note = "; import visionattn before torch.export.load" if path.suffix == PACKAGE and graph.has_our_ops else ""
    print(f"done: {path}, {megabytes:.1f} MB{note}", flush=True)
