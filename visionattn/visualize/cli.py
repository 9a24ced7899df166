"""``visionattn visualize``: where a query looks, over an image or as the pattern of a setting."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from visionattn.arguments import Parser, positive
from visionattn.training.errors import UserError, first_line, one_line

COMMANDS = "map|sheet|layers|pattern|zoo"


def _pair(text: str, least: int = 0) -> tuple[int, int]:
    """``7`` or ``7x5``."""
    if not re.fullmatch(r"\d{1,5}(x\d{1,5})?", text) or min(map(int, text.split("x"))) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, or rows and columns as in 7x5, got "
                                         f"{text!r}")  # fmt: skip
    numbers = tuple(map(int, text.split("x")))
    return numbers if len(numbers) == 2 else numbers * 2


def _size(text: str) -> tuple[int, int]:
    return _pair(text, 1)


def _seen(text: str) -> tuple[int, int] | int:
    return _size(text) if "x" in text else positive(int)(text)


def _place(text: str) -> tuple[int, int]:
    """``120,200``: row, column."""
    if not re.fullmatch(r"-?\d{1,6},-?\d{1,6}", text):
        raise argparse.ArgumentTypeError(f"must be a row and a column as in 120,200, got {text!r}")
    row, column = map(int, text.split(","))
    return row, column


def _numbers(text: str) -> tuple[float, float]:
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two numbers as in 1.5,-2, got {text!r}") from None
    return first, second


def _list(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", text):
        raise argparse.ArgumentTypeError(f"must be whole numbers as in 0,5,7, got {text!r}")
    return list(map(int, text.split(",")))


def _head(text: str) -> int | str:
    if text in ("mean", "all"):
        return text
    if not re.fullmatch(r"\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"must be a number from 0, mean or all, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    from .pattern import OPS
    from .style import THEMES

    parser = Parser(
        prog="visionattn visualize",
        description="Draws where a query looks. The weights are read off the op that computes them: bias, mask, shift, "
        "stride and sampled places included.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar=COMMANDS, parser_class=Parser)
    over = commands.add_parser("map", help="one layer's weights over an image, for one query")
    sheet = commands.add_parser("sheet", help="all layers of a model over an image, for one query")
    layers = commands.add_parser("layers", help="the layers of a model that attend, with their settings")
    for command in (over, sheet, layers):
        add = command.add_argument
        add("--model", metavar="NAME", help="for timm.create_model; random weights unless told otherwise")
        add("--pretrained", action="store_true", help="the published weights of --model")
        add("--checkpoint", metavar="PATH", help="a run's folder, which knows its model, or a file of weights")
        add("--image", type=Path, metavar="FILE", help="(default: a generated scene)")
        add("--size", type=_seen, metavar="N|HxW",
            help="pixels that the network sees: of the short side, or rows x columns (default: the model's own size on "
            "the short side)")  # fmt: skip
    for command in (over, sheet):
        command.add_argument("--at", type=_place, metavar="Y,X", help="the query's pixel in the image (default: the "
                             "middle)")  # fmt: skip
    over.add_argument("--layer", default="-1", metavar="NAME",
                      help="its name or the beginning of it, or its number from 0, negative from the end; 'layers' "
                      "lists them (default: the last)")  # fmt: skip
    over.add_argument("--head", type=_head, default="mean", metavar="N|mean|all", help="(default: %(default)s)")
    pattern = commands.add_parser("pattern", help="who attends to whom under a setting of an op, without an image")
    add = pattern.add_argument
    add("--op", choices=(*OPS, "channel"), required=True, help="which attention; windows of MaxViT's: window and "
        "--partition grid")  # fmt: skip
    add("--map", type=_size, default=(28, 28), metavar="HxW", help="rows and columns of the map (default: 28x28)")
    add("--at", type=_place, nargs="+", metavar="Y,X", help="one or two queries (default: the middle and a corner)")
    for name, what in (("kernel-size", "of neighborhood"), ("dilation", "of neighborhood (default: 1)"),
                       ("stride", "of neighborhood, and of halo's queries (default: 1)"),
                       ("window-size", "of window and varied_window"), ("shift", "of window (default: 0)"),
                       ("block-size", "of halo"), ("halo-size", "of halo"), ("regions", "of routed")):  # fmt: skip
        add(f"--{name}", type=_pair, metavar="N", help=f"{what}; a number, or rows and columns as in 7x5")
    add("--partition", choices=("block", "grid"), help="of window (default: block)")
    add("--topk", type=positive(int), metavar="K", help="of routed: how many regions each attends to, drawn at random")
    add("--routes", type=_list, metavar="N,N", help="of routed: the regions that all attend to, in reading order")
    add("--move", type=_numbers, metavar="Y,X", help="of varied_window: displacement of the keys (default: 0,0)")
    add("--stretch", type=_numbers, metavar="Y,X", help="of varied_window: by how much more than 1 (default: 0,0)")
    zoo = commands.add_parser("zoo", help="the patterns of all mixers side by side")
    for command in (pattern, zoo):
        command.add_argument("--theme", choices=tuple(THEMES), default="light", help="(default: %(default)s)")
    for command, name in ((over, "attention"), (sheet, "sheet"), (pattern, "pattern"), (zoo, "zoo")):
        command.add_argument("--out", type=Path, default=Path(f"{name}.png"), metavar="PNG",
                             help="(default: %(default)s)")  # fmt: skip
    return parser


def _watched(args: argparse.Namespace):
    """The source, the picture, and the layers that attend over it."""
    import visionattn  # noqa: F401  registers our models with timm

    from . import record, source

    image = source.open_image(args.image)
    found = source.load(args.model, args.pretrained, args.checkpoint)
    picture = source.see(image, found, args.size)
    try:
        layers = record.attending_layers(found.model, picture.input)
    except (RuntimeError, ValueError, AssertionError) as error:  # timm's own models may insist on a size
        reason = first_line(error)
        raise UserError(f"the model does not take an image of {picture.size[0]}x{picture.size[1]}: {reason}") from None
    if not layers:
        raise UserError(f"{found.name.split(',')[0]} has no layer that attends over a map by an op of this library")
    return found, picture, layers


def _point(args: argparse.Namespace, picture) -> tuple[float, float]:
    width, height = picture.image.size
    return picture.seen(*(args.at or (height // 2, width // 2)))


def _map(args: argparse.Namespace) -> None:
    from . import overlay, record

    found, picture, layers = _watched(args)
    point = _point(args, picture)
    layer = record.find(layers, args.layer)
    if not layer.spatial:
        others = [other.name for other in layers if other.spatial]
        raise UserError(f"layer {layer.name} attends between channels: its weights have no place on the image; layers "
                        f"that have one: {', '.join(others)}")  # fmt: skip
    at = overlay.draw_layer(picture, layer, point, args.head, args.out, found.name)
    print(f"{layer.name}: {layer.setting}, {layer.heads} heads, query at {at[0]},{at[1]} of a "
          f"{layer.size[0]}x{layer.size[1]} map\ndrawn: {args.out}")  # fmt: skip


def _sheet(args: argparse.Namespace) -> None:
    from . import overlay

    found, picture, layers = _watched(args)
    overlay.draw_sheet(picture, layers, _point(args, picture), args.out, found.name)
    print(f"{len(layers)} layers\ndrawn: {args.out}")


def _layers(args: argparse.Namespace) -> None:
    _, picture, layers = _watched(args)
    lines = [("", "layer", "map", "heads", f"attention, at {picture.size[0]}x{picture.size[1]}")]
    lines += [(str(i), layer.name, f"{layer.size[0]}x{layer.size[1]}", str(layer.heads), layer.setting)
              for i, layer in enumerate(layers)]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines))


def _pattern(args: argparse.Namespace) -> None:
    from . import gallery, pattern
    from .style import THEMES

    names = ("kernel_size", "dilation", "stride", "window_size", "shift", "partition", "block_size", "halo_size",
             "regions", "topk", "routes", "move", "stretch")  # fmt: skip
    setting = {name: value for name in names if (value := getattr(args, name)) is not None}
    height, width = args.map
    call = pattern.make_pattern(args.op, args.map, **setting)
    queries = args.at or [(height // 2, width // 2), (height - 1, width - 1)]
    if len(queries) > 2:
        raise UserError(f"--at takes one or two queries, got {len(queries)}")
    for y, x in queries:
        if not (0 <= y < height and 0 <= x < width):
            allowed = f"rows 0 to {height - 1} and columns 0 to {width - 1}"
            raise UserError(f"--at must lie on the map, {allowed}, got {y},{x}")
    gallery.draw_one(call, queries, args.out, THEMES[args.theme])
    for y, x in queries:
        print(f"{y},{x} sees {int((call.row(y, x, equal=True) != 0).sum())} of {height * width} positions")
    print(f"drawn: {args.out}")


def _zoo(args: argparse.Namespace) -> None:
    from . import gallery
    from .style import THEMES

    gallery.draw_zoo(args.out, THEMES[args.theme])
    print(f"drawn: {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (2 for what the user can put right)."""
    args = _parser().parse_args(argv)
    commands = {"map": _map, "sheet": _sheet, "layers": _layers, "pattern": _pattern, "zoo": _zoo}
    try:
        commands[args.command](args)
    except (UserError, ValueError) as error:
        message = one_line(error) if isinstance(error, UserError) else str(error)
        print(f"visionattn visualize {args.command}: error: {message}", file=sys.stderr)
        return 2
    return 0
