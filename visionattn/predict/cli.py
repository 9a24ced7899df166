"""``visionattn predict``: what a trained model says of pictures, as JSON and drawn."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import visionattn  # noqa: F401  registers the models
from visionattn.arguments import Parser, json_object, positive
from visionattn.training.errors import Unreadable, UserError, one_line
from visionattn.training.files import aside
from visionattn.training.trained import Choice, running

from . import kinds
from .drawing import Tile, contact_sheet
from .pictures import Named, collect, read
from .predictor import Answer, Predictor

PROG = "visionattn predict"
RECORD, SHEET = "predictions.json", "sheet"
A_SHEET = 60


def _between(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Says what a trained model makes of pictures, as JSON, drawn, and as a contact sheet where there\n"
        "are several: the classes of a classifier, the boxes (and masks) of a detector, the areas of a segmentor.\n"
        "Pictures of a classifier in a folder with the name of a class are marked right or wrong.",
        epilog="Exit code: 0 when every picture was read; 1 when some could not be read (they are named and\n"
        "counted); 2 for a mistake in the options, the model, or where no picture could be read.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder (of classifier, detector or segmentor), one of its checkpoints "
        "(of a segmentor: iter_N.pth), a folder that 'visionattn export' "
        "wrote, a file of weights with --model, or the name of a model with published weights")  # fmt: skip
    add("images", nargs="+", metavar="IMAGE", help="image files, folders, or lists (.txt) with a path a line")
    add("--out", type=Path, metavar="DIR",
        help=f"folder for {RECORD} and pictures (default: predictions, or predictions-2, ...)")  # fmt: skip
    add("--overwrite", action="store_true", help="write into --out though it holds predictions (default: refuse)")
    add("--no-pictures", action="store_true", help="write the JSON and the contact sheet alone")
    add("--top", type=positive(int), default=5, metavar="K", help="classes in an answer (default: %(default)s)")
    add("--threshold", type=_between, default=0.5, metavar="S",
        help="detection: score from which an object counts (default: %(default)s)")  # fmt: skip
    add("--size", type=positive(int), metavar="N",
        help="height and width of a classifier's input, short side of a detector's (default: its own)")  # fmt: skip
    add("--crop-pct", type=positive(float), metavar="P",
        help="the short side is resized to size / P and the centre is cropped (default: the model's own)")  # fmt: skip
    add("--weights", choices=("auto", "ema", "raw"), default="auto",
        help="of a run: averaged or raw; auto: averaged ones if there are some (default: %(default)s)")  # fmt: skip
    add("--model", dest="architecture", metavar="NAME", help="architecture, for a bare file of weights")
    add("--kwargs", type=json_object, default={}, metavar="JSON",
        help="further arguments of timm.create_model, for files and names (default: none)")  # fmt: skip
    add("--batch", type=positive(int), default=16, metavar="N", help="pictures at a time (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="autocast; auto: bf16 on a GPU that has it, else fp32 (default: auto)")  # fmt: skip
    add("--threads", type=positive(int), metavar="N", help="CPU threads (default: PyTorch's choice)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 1 where some pictures could not be read; 2 for the user's mistakes."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; what was done is kept", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    names = collect(args.images)
    folder = _folder(args.out, args.overwrite)
    choice = Choice(args.architecture, args.kwargs, args.weights, image_size=args.size)
    asked = kinds.Asked(args.top, args.size, args.crop_pct, args.threshold)
    predictor = kinds.make(args.model, choice, asked, running(args.device, args.precision))
    work = _Work(folder, predictor, len(names) > 1, not args.no_pictures)
    try:
        for start in range(0, len(names), args.batch):
            work.step(names[start : start + args.batch])
    finally:
        work.finish()
    if not work.records:
        reason = f": {work.first}" if work.first else ""
        raise UserError(f"none of the {len(names)} pictures can be read{reason}")
    skipped = len(work.unreadable)
    if skipped:
        print(f"{skipped} of {len(names)} pictures skipped, which cannot be read", file=sys.stderr)
    print(f"written: {folder / RECORD}" + "".join(f", {path}" for path in work.sheets))
    return 1 if skipped else 0


def _folder(wanted: Path | None, overwrite: bool) -> Path:
    if wanted is None:
        free = (Path("predictions" if n == 1 else f"predictions-{n}") for n in range(1, 100_000))
        return next(path for path in free if not path.exists())
    if wanted.exists() and not wanted.is_dir():
        raise UserError(f"--out: {wanted} is a file; it must be a folder, or not there yet")
    if (wanted / RECORD).exists() and not overwrite:
        raise UserError(f"--out: {wanted} holds predictions already; --overwrite writes over them")
    return wanted


class _Work:
    """Predicts batch by batch and keeps what is to be written."""

    def __init__(self, folder: Path, predictor: Predictor, several: bool, pictures: bool):
        self.folder, self.predictor, self.several, self.pictures = folder, predictor, several, pictures
        self.records: list[dict[str, Any]] = []
        self.unreadable: list[str] = []
        self.sheets: list[Path] = []
        self.first, self._tiles = "", list[Tile]()

    def step(self, names: Sequence[Named]) -> None:
        """Read, predict, draw and tell one batch."""
        readable, images = [], []
        for named, image in self._read(names):
            readable.append(named)
            images.append(image)
        if not images:
            return
        for named, image, answer in zip(readable, images, self.predictor(readable, images)):
            self._keep(named, image, answer)

    def _read(self, names: Sequence[Named]) -> Iterator[tuple[Named, Image.Image]]:
        for named in names:
            try:
                yield named, read(named)
            except Unreadable as error:
                self.first = self.first or str(error)
                self.unreadable.append(str(named.path))
                if self.several:
                    print(f"skipped: {error}", file=sys.stderr)

    def _keep(self, named: Named, image: Image.Image, answer: Answer) -> None:
        size = dict(width=image.width, height=image.height)
        record = dict(file=str(named.path)) | size | answer.record()
        if self.pictures or not self.several:
            path = self.folder / f"{named.label}.png"
            with aside(path) as temporary:
                answer.draw(image).save(temporary, format="PNG")
            record["picture"] = str(path.relative_to(self.folder))
        self.records.append(record)
        print(f"{named.label}: {answer.summary()}", flush=True)
        if self.several:
            self._tiles.append(answer.tile(image))
            if len(self._tiles) == A_SHEET:
                self._sheet()

    def _sheet(self) -> None:
        path = self.folder / (f"{SHEET}.png" if not self.sheets else f"{SHEET}-{len(self.sheets) + 1}.png")
        about = self.predictor.about
        heading = f"{about['model']}: {about['source']}" if about["model"] != about["source"] else about["source"]
        with aside(path) as temporary:
            contact_sheet(self._tiles, heading).save(temporary, format="PNG")
        self.sheets.append(path)
        self._tiles = []

    def finish(self) -> None:
        """Write the last sheet and the JSON of all that was done."""
        if not self.records:
            return
        if self._tiles:
            self._sheet()
        known = [record["correct"] for record in self.records if "correct" in record]
        found = dict(kind=self.predictor.kind, model=self.predictor.about, images=self.records)
        if known:
            found["accuracy"] = round(sum(known) / len(known), 6)
            print(f"{sum(known)} of {len(known)} pictures right, by the names of their folders")
        found["unreadable"] = self.unreadable
        with aside(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
