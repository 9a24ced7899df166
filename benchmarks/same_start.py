"""Trains two models from the same weights on the same batches and draws both losses on one plot.

``python benchmarks/same_start.py --root cifar10 --models swin_tiny_patch4_window7_224 fused_swin_tiny``

The first model is timm's with random weights, the second takes them through its checkpoint filter. What follows ``--``
are options of ``visionattn train`` for both.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import timm
import torch
from safetensors.torch import save_file

import visionattn  # noqa: F401  registers our models with timm
from visionattn.training import checkpoint, train

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAST = 30  # steps that the final loss is the mean of


def start(folder: Path, name: str, classes: Sequence[str]) -> None:
    """Random weights of timm's model as a checkpoint that says its classes, so that the classifier is kept too."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(classes))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: x.contiguous() for key, x in model.state_dict().items()}, folder / checkpoint.MODEL)
    (folder / checkpoint.STATE).write_text(json.dumps(dict(classes=list(classes))), encoding="utf-8")


def losses(run: Path) -> tuple[list[int], list[float]]:
    """Steps of a run and their losses."""
    with open(run / "steps.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="an image folder with the splits train and test")
    parser.add_argument("--models", nargs=2, required=True, metavar="NAME", help="timm's model and ours")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=166, help="166 makes 301 steps of CIFAR-10's 50,000 images")
    parser.add_argument("--out", type=Path, default=Path("same_start"), help="folder of the runs, the CSV and the plot")
    parser.add_argument("options", nargs="*", help="options of visionattn train")
    args = parser.parse_args()

    classes = sorted(path.name for path in (args.root / "train").iterdir() if path.is_dir())
    start(args.out / "start", args.models[0], classes)
    found = {}
    for name in args.models:
        code = train.main([
            "--model.name", name, "--model.checkpoint", str(args.out / "start"), "--data.dataset", "folder",
            "--data.root", str(args.root), "--data.val_split", "test", "--data.image_size", str(args.size),
            "--data.cache", "true", "--optim.batch_size", str(args.batch), "--optim.lr", "5e-4",
            "--schedule.epochs", "1", "--schedule.warmup_epochs", "0.1", "--run.log_steps", "1",
            "--run.dir", str(args.out / name), *args.options,
        ])  # fmt: skip
        if code:
            return code
        found[name] = losses(args.out / name)

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    finals = {}
    for (name, (steps, values)), style in zip(found.items(), ("-", "--")):
        finals[name] = sum(values[-LAST:]) / len(values[-LAST:])
        axes.plot(steps, values, style, linewidth=1, label=f"{name}: {finals[name]:.4f} at the end")
    axes.set(xlabel="step", ylabel="training loss", title="The same weights at the start, the same batches")
    axes.legend()
    figure.savefig(args.out / "losses.png", dpi=150)
    with open(args.out / "losses.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *found])
        writer.writerows(zip(next(iter(found.values()))[0], *(values for _, values in found.values())))
    first, second = finals.values()
    print(f"mean loss of the last {LAST} steps: {first:.4f} and {second:.4f}, {second / first - 1:+.2%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
