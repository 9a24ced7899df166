"""The console script ``visionattn``: every tool as a subcommand, each loaded only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "models": ("visionattn.listing", "list the backbones"),
    "env": ("visionattn.environment", "versions, GPUs, which kernels run here and why"),
    "train": ("visionattn.training.train", "train an image classifier"),
    "train-seg": ("visionattn.segmentation.train", "train a segmentor on mmsegmentation"),
    "train-det": ("visionattn.detection.train", "train a detector"),
    "curves": ("visionattn.training.curves", "draw the curves of a run, while it runs too"),
    "validate": ("visionattn.validate.cli", "evaluate trained classifiers: accuracy, calibration, speed"),
    "predict": ("visionattn.predict.cli", "what a trained model says of pictures, as JSON and drawn"),
    "export": ("visionattn.export.cli", "write a model as ONNX, as a torch.export package or as a timm folder"),
    "benchmark": ("visionattn.benchmark.cli", "measure kernels and models, draw the measurements"),
    "simulate": ("visionattn.simulate.cli", "bound the speed-up of a neighborhood attention by counting tiles"),
    "visualize": ("visionattn.visualize.cli", "draw where a query looks, over an image or as a pattern"),
}


def _usage() -> str:
    lines = "\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())
    return f"usage: visionattn COMMAND [OPTIONS]\n\n{lines}\n\n'visionattn COMMAND --help' shows a command's options."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code; 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        print(f"visionattn: error: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[name][0]).main(arguments[1:])
    except BrokenPipeError:  # who reads has had enough, as head has; nothing may be flushed into the pipe any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
