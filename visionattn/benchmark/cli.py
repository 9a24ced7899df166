"""``visionattn benchmark``: measures kernels and models on this machine, and draws what was measured."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from visionattn.arguments import Parser, positive
from visionattn.training.errors import UserError

DTYPES = ("bfloat16", "float16", "float32")
FUSABLE = ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224", "davit_tiny", "gcvit_tiny", "halonet50ts")


def _parser() -> argparse.ArgumentParser:
    from .cases import GROUPS, SIMULATOR_GROUPS

    rows = list(dict.fromkeys(name for groups in GROUPS.values() for name in groups))
    parser = Parser(prog="visionattn benchmark", description=__doc__.split(": ", 1)[1].strip())
    metavar = "kernels|simulator|models|fused|loop|data|plot|report"
    commands = parser.add_subparsers(dest="command", required=True, metavar=metavar, parser_class=Parser)

    kernels = commands.add_parser("kernels", help="the kernels beside their peers and the hardware's floor")
    kernels.add_argument(
        "--op",
        choices=tuple(GROUPS),
        default="neighborhood",
        help="which op: neighborhood beside NATTEN and SDPA, window and halo beside timm's path, channel beside it and "
        "other eager forms, linear beside an eager form, routing beside gathering, varied_window beside grid_sample, "
        "depthwise (convolutions) beside torch's conv2d (default: %(default)s)",
    )
    kernels.add_argument("--rows", choices=rows, default="all", help="which shapes (default: %(default)s)")
    kernels.add_argument(
        "--time-budget",
        type=positive(float),
        default=600.0,
        metavar="SECONDS",
        help="leave out what would start later than this (default: %(default)s)",
    )
    kernels.add_argument(
        "--rep",
        type=positive(float),
        default=40.0,
        metavar="MS",
        help="milliseconds spent on repeating one call (default: %(default)s)",
    )
    kernels.add_argument("--no-graphs", dest="graphs", action="store_false", help="skip the times under a CUDA graph")
    kernels.add_argument(
        "--no-first-call", dest="first_calls", action="store_false", help="skip the first-call times in fresh processes"
    )
    kernels.add_argument(
        "--no-compiled", dest="compiled", action="store_false", help="skip the peers' paths under torch.compile"
    )

    kernels.add_argument(
        "--no-prepare",
        dest="prepare",
        action="store_false",
        help="do not compile all kernels in parallel before the measuring",
    )

    simulator = commands.add_parser(
        "simulator", help="our kernel's speed-up over itself at kernel = map, beside the bounds of visionattn simulate"
    )
    simulator.add_argument(
        "--rows",
        choices=tuple(SIMULATOR_GROUPS),
        default="all",
        help="which settings; small: windows of a few chunks, where a tile's fixed cost shows (default: %(default)s)",
    )
    simulator.add_argument(
        "--rep",
        type=positive(float),
        default=100.0,
        metavar="MS",
        help="milliseconds spent on repeating one call (default: %(default)s)",
    )
    simulator.add_argument(
        "--no-prepare", dest="prepare", action="store_false", help="do not compile in parallel before the measuring"
    )

    models = commands.add_parser("models", help="whole models: images a second and memory")
    models.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME",
        help="names for timm.create_model; a leading timm/ is for the reader, natten/ puts NATTEN's op in the place of "
        "ours in a NAT or DiNAT, which has no relative bias then, and unbiased/ leaves only the bias out; fused/ is "
        "timm's model after visionattn.fuse; reference/ runs any of ours on the ops' references in PyTorch",
    )
    models.add_argument("--batch", type=positive(int), default=128, help="images a step (default: %(default)s)")
    models.add_argument("--size", type=positive(int), default=224, help="height and width (default: %(default)s)")
    models.add_argument("--steps", type=positive(int), default=30, help="steps that are timed (default: %(default)s)")
    models.add_argument(
        "--passes",
        nargs="+",
        choices=("training", "inference"),
        default=("training", "inference"),
        help="what to measure (default: both)",
    )
    _add_compile(models)
    models.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory format of the images and the weights (default: channels last)",
    )

    models.add_argument("--jobs", type=positive(int), default=1, metavar="N",
                        help="compile so many at once, in processes of their own; what is timed is alone on the device "
                        "(default: %(default)s)")  # fmt: skip

    fused = commands.add_parser(
        "fused", help="training of timm's models before and after visionattn.fuse, and attention's share of it"
    )
    fused.add_argument(
        "--models", nargs="+", default=FUSABLE, metavar="NAME", help="timm's names (default: %(default)s)"
    )
    fused.add_argument(
        "--compile", nargs="*", default=(), metavar="NAME", help="which of them to measure under torch.compile too"
    )
    fused.add_argument("--batch", type=positive(int), default=128, help="images a step (default: %(default)s)")
    fused.add_argument("--size", type=positive(int), help="height and width (default: what each model is made for)")
    fused.add_argument("--steps", type=positive(int), default=20, help="steps that are timed (default: %(default)s)")

    loop = commands.add_parser("loop", help="the training loop on images in memory beside the bare step")
    loop.add_argument("--model", default="gna_tiny", metavar="NAME", help="timm's name for it (default: %(default)s)")
    loop.add_argument("--batch", type=positive(int), default=128, help="images a step (default: %(default)s)")
    loop.add_argument("--size", type=positive(int), default=224, help="height and width (default: %(default)s)")
    loop.add_argument("--steps", type=positive(int), default=100, help="steps that are timed (default: %(default)s)")
    loop.add_argument("--workers", type=int, default=8, help="processes that load (default: %(default)s)")
    _add_compile(loop)

    loading = commands.add_parser("data", help="the data path beside timm's loader: images a second")
    loading.add_argument("--root", type=Path, required=True, help="an image folder: ROOT/train/CLASS/*.jpg")
    loading.add_argument("--workers", type=positive(int), default=1, help="processes that load (default: %(default)s)")
    loading.add_argument("--batch", type=positive(int), default=64, help="images a batch (default: %(default)s)")
    loading.add_argument("--size", type=positive(int), default=224, help="height and width (default: %(default)s)")
    loading.add_argument("--batches", type=positive(int), default=10, help="of a round (default: %(default)s)")
    loading.add_argument("--out", type=Path, metavar="CSV", help="default: benchmarks/<machine>_data.csv")
    loading.add_argument("--revision", help="code revision to note (default: git's)")

    for command in (kernels, simulator, models, fused, loop):
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
        if command is not loop:  # it trains in what a run trains in
            command.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: %(default)s)")
        command.add_argument(
            "--out",
            type=Path,
            metavar="CSV",
            help="default: benchmarks/<machine>_<command>.csv; lines of the same measurement are replaced, others kept",
        )
        command.add_argument("--revision", help="code revision to note (default: git's)")

    plot = commands.add_parser("plot", help="a PNG of every CSV file")
    plot.add_argument("csv", nargs="*", type=Path, help="default: benchmarks/*.csv")
    plot.add_argument("--out-dir", type=Path, default=Path("benchmarks/figures"), help="(default: %(default)s)")

    report = commands.add_parser("report", help="every figure from the CSV files, and the README's tables")
    report.add_argument("--results", type=Path, default=Path("benchmarks"), metavar="FOLDER",
                        help="holds the CSV files; figures go to FOLDER/figures (default: %(default)s)")  # fmt: skip
    report.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE",
                        help="whose tables are filled (default: %(default)s)")  # fmt: skip
    report.add_argument("--no-readme", dest="readme", action="store_const", const=None, help="only draw")
    return parser


def _add_compile(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        metavar="MODE",
        help="under torch.compile, in this mode (default without a value: default)",
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _device(name: str):
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; --device cpu runs small shapes (kernels --rows tiny) without one")
    return torch.device(name)


def _kernels(args: argparse.Namespace) -> None:
    import torch

    device = _device(args.device)
    from . import records, summary
    from .cases import GROUPS

    if args.rows not in GROUPS[args.op]:
        raise UserError(f"--rows must be one of {', '.join(GROUPS[args.op])} for --op {args.op}, got {args.rows}")
    cases, dtype = GROUPS[args.op][args.rows], getattr(torch, args.dtype)
    path = args.out or records.default_path(device, "kernels" if args.op == "neighborhood" else args.op)
    kept = records.Records(path, *records.KERNEL_RECORDS[args.op])
    kept.write()  # a file that cannot be written is better known before the measuring
    origin = records.origin(device, args.revision)
    common = (cases, kept, device, dtype, origin, args.time_budget, args.rep, args.graphs)
    if args.op == "neighborhood":
        from . import neighborhood

        neighborhood.run(*common, args.first_calls, args.prepare, _say)
    else:
        from . import beside_timm, channel, depthwise, halo, linear, routing, varied_window, window

        modules = {"window": window, "halo": halo, "channel": channel, "linear": linear, "routing": routing}
        module = (modules | {"varied_window": varied_window, "depthwise": depthwise})[args.op]
        beside_timm.run(module.sides, *common, args.compiled, _say)
    table = summary.by_case(kept.rows.values(), args.op, args.dtype)
    table = {case: table[case] for case in cases if case in table}
    said = [summary.render(table, args.op), *summary.speedups(table, args.op)]
    if args.op != "neighborhood":
        said += summary.memory(table, args.op)
    _say("\n".join(["", *said, f"written: {path}"]))


def _simulator(args: argparse.Namespace) -> None:
    import torch

    device = _device(args.device)
    from . import records, simulator
    from .cases import SIMULATOR_GROUPS

    cases, path = SIMULATOR_GROUPS[args.rows], args.out or records.default_path(device, "simulator")
    kept = records.Records(path, records.SIMULATOR_COLUMNS, records.SIMULATOR_KEY)
    kept.write()
    simulator.run(cases, kept, device, getattr(torch, args.dtype), records.origin(device, args.revision), args.rep,
                  args.prepare, _say)  # fmt: skip
    mine = [row for row in kept.rows.values() if row["dtype"] == args.dtype and simulator.case_of(row) in cases]
    _say("\n".join(["", simulator.render(mine), "", *simulator.summary(mine), f"written: {path}"]))


def _models(args: argparse.Namespace) -> None:
    import torch

    device = _device(args.device)
    import visionattn  # noqa: F401  registers our models with timm

    from . import models, records

    models.check_names(args.models, device)
    path = args.out or records.default_path(device, "models")
    kept = records.Records(path, records.MODEL_COLUMNS, records.MODEL_KEY)
    kept.write()
    models.run(
        args.models,
        kept,
        args.batch,
        args.size,
        device,
        getattr(torch, args.dtype),
        args.compile,
        args.channels_last,
        args.steps,
        args.passes,
        records.origin(device, args.revision),
        args.jobs,
        _say,
    )
    _say(f"written: {path}")


def _fused(args: argparse.Namespace) -> None:
    import torch

    device = _device(args.device)
    from . import fused, models, records

    models.check_names([models.FUSED + name for name in args.models], device)
    if stray := sorted(set(args.compile) - set(args.models)):
        raise UserError(f"--compile takes names of --models, got {', '.join(stray)}")
    path = args.out or records.default_path(device, "fused")
    kept = records.Records(path, records.FUSED_COLUMNS, records.MODEL_KEY)
    kept.write()
    origin = records.origin(device, args.revision)
    dtype = getattr(torch, args.dtype)
    fused.run(args.models, args.compile, kept, args.batch, args.size, device, dtype, args.steps, origin, _say)
    rows = [row for row in kept.rows.values() if row["dtype"] == args.dtype and row["batch"] == str(args.batch)]
    _say("\n".join(["", fused.render(rows, args.models), f"written: {path}"]))


def _loop(args: argparse.Namespace) -> None:
    device = _device(args.device)
    import visionattn  # noqa: F401  registers our models with timm

    from . import bare_step, models, records

    models.check_names([args.model], device)
    path = args.out or records.default_path(device, "loop")
    kept = records.Records(path, records.LOOP_COLUMNS, records.LOOP_KEY)
    kept.write()
    bare_step.run(args.model, args.batch, args.size, args.compile, max(args.workers, 0), args.steps, device, kept,
                  records.origin(device, args.revision), _say)  # fmt: skip
    _say(f"written: {path}")


def _data(args: argparse.Namespace) -> None:
    import torch

    from . import loading, records

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # says whose processor it is
    path = args.out or records.default_path(device, "data")
    kept = records.Records(path, records.DATA_COLUMNS, records.DATA_KEY)
    kept.write()
    loading.run(args.root, args.workers, args.batch, args.size, max(2, args.batches), kept,
                records.origin(device, args.revision), _say)  # fmt: skip
    _say(f"written: {path}")


def _plot(args: argparse.Namespace) -> None:
    from . import plot, records

    found = sorted(Path("benchmarks").glob("*.csv"))
    paths = args.csv or [path for path in found if not path.stem.endswith(records.UNDRAWN)]
    if not paths:
        raise UserError("no CSV file given and none in benchmarks/")
    for path in paths:
        _say(f"drawn: {plot.draw(path, args.out_dir)}")


def _report(args: argparse.Namespace) -> None:
    from . import report

    report.run(args.results, args.readme, _say)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (2 for what the user can put right)."""
    args = _parser().parse_args(argv)
    try:
        commands = {"kernels": _kernels, "simulator": _simulator, "models": _models, "fused": _fused, "data": _data}
        (commands | {"loop": _loop, "plot": _plot, "report": _report})[args.command](args)
    except UserError as error:
        print(f"visionattn benchmark {args.command}: error: {error}", file=sys.stderr)
        return 2
    return 0
