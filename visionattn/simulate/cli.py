"""``visionattn simulate``: how much faster than full attention a neighborhood attention can be, by counting tiles."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from visionattn.arguments import Parser, positive
from visionattn.training.errors import UserError

from . import ours, search
from .model import Problem, Result, Tiling, as_text, per_axis, simulate

DTYPES = ("bfloat16", "float16", "float32")
NOTE = "strides that gain nothing over a smaller one are left out"


def _sizes(text: str) -> tuple[int, ...]:
    """``128x128`` or ``32``."""
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}){0,2}", text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number, or one an axis as in 128x96, got {text!r}")
    return tuple(map(int, text.split("x")))


def _stride(text: str) -> tuple[int, ...] | str:
    return text if text in ("all", "best") else _sizes(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="visionattn simulate",
        description="Counts the key tiles that query tiles visit, hence how much faster than full attention on the "
        "same map a neighborhood attention can be at best: realistic bound and bound by FLOPs alone.",
    )
    add = parser.add_argument
    add("--map", type=_sizes, required=True, metavar="HxW", help="1 to 3 axes, as in 4096, 128x128 or 30x48x80")
    add("--kernel", type=_sizes, nargs="+", metavar="K", help="one number, or one an axis as in 18x24x24")
    add("--sparsity", type=_share, metavar="S", help="instead of --kernel: find kernel, stride and tiles for 0 < S < 1")
    add("--stride", type=_stride, nargs="+", default=["all"], metavar="S",
        help="strides, or all (the same on every axis, 1 to kernel), or best (default: all)")  # fmt: skip
    add("--dilation", type=_sizes, default=(1,), metavar="D", help="(default: 1)")
    add("--causal", type=int, nargs="+", default=[], metavar="AXIS", help="causal axes, counted from 0 (default: none)")
    add("--tile", type=_sizes, metavar="TxT", help="queries a tile (default: our kernel's own)")
    add("--chunk", type=_sizes, metavar="CxC", help="keys a chunk (default: our kernel's own)")
    add("--tile-size", type=positive(int), metavar="N", help="for --sparsity and best: any tile of so many queries")
    add("--chunk-size", type=positive(int), metavar="N", help="for --sparsity and best: any chunk of so many keys")
    add("--static", action="store_true",
        help="chunks lie on a fixed grid of the map; else they start at the first key that a tile sees")  # fmt: skip
    add("--head-dim", type=positive(int), default=64, metavar="D", help="our kernel's tiles for it (default: 64)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="our kernel's tiles for it (default: %(default)s)")
    add("--bias", action="store_true", help="our kernel's tiles with a relative bias")
    add("--tolerance", type=_share, default=0.01, help="of --sparsity (default: %(default)s)")
    add("--top", type=positive(int), default=10, metavar="N", help="settings that a search shows (default: 10)")
    add("--json", metavar="FILE", help="write the settings as JSON; - prints them instead of the table")
    add("--plot", type=Path, metavar="PNG", help="draw the speed-ups against the stride")
    return parser


class _Question:
    """The arguments, checked together."""

    def __init__(self, args: argparse.Namespace):
        self.args, axes = args, len(args.map)
        if (args.kernel is None) == (args.sparsity is None):
            raise UserError("give either --kernel or --sparsity")
        wrong = [axis for axis in args.causal if not 0 <= axis < axes]
        if wrong:
            raise UserError(f"--causal must name axes from 0 to {axes - 1}, got {wrong[0]}")
        if not 8 <= args.head_dim <= 256:
            raise UserError(f"--head-dim must lie between 8 and 256, got {args.head_dim}")
        if (args.tile is None) != (args.chunk is None) or (args.tile_size is None) != (args.chunk_size is None):
            raise UserError("a tile and a chunk go together: --tile and --chunk, or --tile-size and --chunk-size")
        if args.tile and args.tile_size:
            raise UserError("give either --tile and --chunk or --tile-size and --chunk-size")
        searches = args.sparsity is not None or "best" in args.stride
        if args.tile_size and not searches:
            raise UserError("--tile-size and --chunk-size choose tiles for --sparsity and --stride best")
        self.ours = args.tile is None and args.tile_size is None
        if self.ours and args.static:
            raise UserError("--static is for --tile and --chunk or their sizes: our kernel's chunks are not static")
        self.causal = tuple(axis in args.causal for axis in range(axes))
        self.dilation = per_axis("dilation", args.dilation, axes)
        self.problem((1,))  # says what no neighborhood can have, whatever its kernel
        self.tiling = None
        if args.tile:
            tile, chunk = per_axis("tile", args.tile, axes), per_axis("chunk", args.chunk, axes)
            self.tiling = Tiling(tile, chunk, args.static)

    def problem(self, kernel: Sequence[int], stride: Sequence[int] = (1,)) -> Problem:
        return Problem.make(self.args.map, kernel, stride, self.dilation, self.causal)

    def own(self, problem: Problem) -> Tiling:
        return ours.tiling(problem, self.args.head_dim, self.args.dtype, self.args.bias)

    def one(self, kernel: Sequence[int], stride: Sequence[int]) -> Result:
        problem = self.problem(kernel, stride)
        if self.ours:
            return simulate(problem, self.own(problem), self.own(problem.full))
        return simulate(problem, self.tiling)

    def search(self, **what: object) -> list[Result]:
        args = self.args
        if self.ours:
            self.own(self.problem((1,)))  # says what our kernel cannot do before the search
            what |= dict(choose=lambda kernel: [self.own(self.problem(kernel))], full=lambda p: self.own(p.full))
        elif args.tile:
            what["choose"] = [self.tiling]
        else:
            what["choose"] = search.tilings(args.tile_size, args.chunk_size, args.map, args.static)
        return search.best(args.map, dilation=self.dilation, causal=self.causal, tolerance=args.tolerance,
                           top=args.top, **what)  # fmt: skip

    def answer(self) -> list[Result]:
        """All settings asked for, in order."""
        if self.args.sparsity is not None:
            return self.search(sparsity=self.args.sparsity)
        found = []
        for kernel in self.args.kernel:
            kernel = self.problem(kernel).kernel
            for stride in self.args.stride:
                if stride == "best":
                    found += self.search(kernel=kernel)
                elif stride == "all":
                    strides = search.thinned(1, max(kernel), 512)
                    found += [self.one(kernel, [min(s, k) for k in kernel]) for s in strides]
                else:
                    found.append(self.one(kernel, stride))
        return found


def worthwhile(results: Sequence[Result]) -> list[Result]:
    """The results in order, without those that are no faster than one of the same kernel before them."""
    kept, fastest = [], {}
    for result in results:
        if result.speedup > fastest.get(result.problem.kernel, 0) * (1 + 1e-9):
            fastest[result.problem.kernel] = result.speedup
            kept.append(result)
    return kept


def table(results: Sequence[Result]) -> str:
    """A line a setting; speed-ups are over full attention."""
    lines = [("kernel", "stride", "tile", "chunk", "tiles", "chunks a tile, most", "sparsity", "by FLOPs", "realistic",
              "busiest tile", "wasted", "block-sparse")]  # fmt: skip
    for r in results:
        sizes = (r.problem.kernel, r.problem.stride, r.tiling.tile, r.tiling.chunk)
        chunks = f"{r.visited / r.tiles:.1f}, {r.busiest}"
        lines.append((*map(as_text, sizes), str(r.tiles), chunks, f"{r.sparsity:.1%}", f"{r.flop_speedup:.2f}x",
                      f"{r.speedup:.2f}x", f"{r.worst_tile_speedup:.2f}x", f"{r.wasted:.1%}",
                      "yes" if r.block_sparse else "no"))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _run(args: argparse.Namespace) -> None:
    question = _Question(args)
    results = question.answer()
    text = json.dumps({"settings": [result.as_dict() for result in results]}, indent=1)
    setting = f"map {as_text(args.map)}"
    setting += f", dilation {as_text(question.dilation)}" if max(question.dilation) > 1 else ""
    setting += f", causal on axes {', '.join(map(str, args.causal))}" if args.causal else ""
    setting += f", our kernel at D {args.head_dim}, {args.dtype}" if question.ours else ""
    if args.json == "-":
        print(text)
    else:
        sweep = args.sparsity is None and "all" in args.stride
        shown = worthwhile(results) if sweep else results
        note = f"; {NOTE}" if len(shown) < len(results) else ""
        print(f"{setting}: speed-up over full attention, at most{note}\n{table(shown)}")
        if args.json:
            _write(Path(args.json), text + "\n")
            print(f"written: {args.json}")
    if args.plot:
        from . import picture  # matplotlib takes longer to load than most answers take

        picture.draw(results, args.plot, setting)
        if args.json != "-":
            print(f"drawn: {args.plot}")


def main(argv: Sequence[str] | None = None) -> int:
    """Answers and returns the exit code (2 for what the user can put right)."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except (UserError, ValueError) as error:
        print(f"visionattn simulate: error: {error}", file=sys.stderr)
        return 2
    return 0
