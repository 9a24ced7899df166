"""Training of timm's models before and after :func:`visionattn.fuse`, in one run, beside what Amdahl's law allows."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from visionattn.fusing import fuse
from visionattn.training.errors import UserError, first_line

from . import records, share
from .models import FUSED, build, measure_model

TIMM = "timm/"
CHECKED = 8  # images that both are compared on first


def image_size(name: str) -> int:
    """The side of the images that timm made a model for."""
    return timm.get_pretrained_cfg(name, allow_unregistered=True).input_size[-1]


def agreement(name: str, size: int, device: torch.device, dtype: torch.dtype) -> str:
    """How far timm's model and the fused one, in ``dtype``, lie from timm's in float32: outputs and all gradients.

    Distances are relative norms, of the model as it is created, in evaluation mode.

    Raises:
        UserError: where the fused one lies more than twice as far as timm's.
    """
    torch.manual_seed(0)
    model = build(TIMM + name, size).to(device).eval()
    ours = copy.deepcopy(model)
    if not fuse(ours):
        raise UserError(f"nothing of {name} is fused")
    images = torch.randn(CHECKED, 3, size, size, device=device)
    labels = torch.randint(1000, (CHECKED,), device=device)
    exact = _results(model, images, labels, torch.float32)
    found = {who: _results(one, images, labels, dtype) for who, one in (("timm", model), ("fused", ours))}
    said = []
    for part in exact:
        errors = {who: _distance(parts[part], exact[part]) for who, parts in found.items()}
        said.append(f"{part} {errors['fused']:.2%} (timm {errors['timm']:.2%})")
        # both may agree with float32 to the bit, or nearly: in float32 itself the order of sums is all that differs
        if not errors["fused"] <= max(2 * errors["timm"], 1e-4):
            raise UserError(f"fused {name} in {dtype} is wrong: from float32 {said[-1]}")
    return "from float32: " + ", ".join(said)


def _results(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> dict:
    model.zero_grad()
    mixed = dtype != torch.float32
    with torch.autocast(images.device.type, dtype=dtype if mixed else torch.bfloat16, enabled=mixed):
        out = model(images)
    cross_entropy(out.float(), labels).backward()
    gradients = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    return {"output": out.detach().double().flatten(), "gradients": gradients}


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def shares(name: str, batch: int, size: int, device: torch.device, dtype: torch.dtype) -> share.Share:
    """Attention's share of a training step, by the profiler."""
    torch.manual_seed(0)
    model = build(name, size).to(device=device, memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    mixed = dtype != torch.float32

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype if mixed else torch.bfloat16, enabled=mixed):
            loss = cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return share.measure(model, step, steps=1)


def run(
    names: Sequence[str],
    compiled: Sequence[str],
    kept: records.Records,
    batch: int,
    size: int | None,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    origin: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Compares, profiles and measures every model, timm's and fused; then those in ``compiled`` again, compiled."""
    notes = {}
    for name, mode in [(name, None) for name in names] + [(name, "default") for name in compiled]:
        side = size or image_size(name)
        if name not in notes:
            notes[name] = agreement(name, side, device, dtype)
            say(f"{name} {side}x{side}: {notes[name]}")
        for who in (TIMM + name, FUSED + name):
            values = _measure(who, batch, side, device, dtype, mode, steps)
            note = notes[name] if who.startswith(FUSED) else ""
            values["note"] = "; ".join(filter(None, (note, values.get("note"))))
            fixed = {"model": who, "pass": "training", "batch": batch, "size": side, "channels_last": True}
            fixed |= {"dtype": str(dtype).removeprefix("torch."), "compiled": mode or "no", **origin}
            row = kept.add(**fixed, **{k: v for k, v in values.items() if k in kept.columns})
            kept.write()
            found = f"{row['images_per_s']} images/s" if row["images_per_s"] else row["note"]
            say(f"  {who}{' compiled' if mode else ''}: {found}")


def _measure(
    who: str, batch: int, size: int, device: torch.device, dtype: torch.dtype, mode: str | None, steps: int
) -> dict[str, object]:
    """The columns of one record; a failure is a note, so that the other models of a run are not lost."""
    try:
        values = measure_model(who, batch, size, device, dtype, mode, True, steps, True)
        _free(device)
        if mode is None:
            found = shares(who, batch, size, device, dtype)
            values |= {"device_ms": found.all_ms, "attention_ms": found.attention_ms}
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        values = {"note": f"{type(error).__name__}: {first_line(error)[:120]}"}
    _free(device)
    return values


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def render(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    """A table in Markdown of ``rows``, as records hold them: a line a model.

    The bound is what Amdahl's law leaves where attention takes no time; expected is what it gives with the time that
    the fused attention takes.
    """
    found = {(row["model"], row["compiled"] != "no"): row for row in rows}
    head = ("model", "timm, images/s", "fused", "gain", "attention, timm ms / step", "fused ms", "expected", "bound")
    lines = [head + ("timm compiled", "fused compiled", "gain"), ("---",) * 11]
    for name in names:
        theirs, ours = (found.get((who + name, False), {}) for who in (TIMM, FUSED))
        if not (theirs.get("attention_ms") and ours.get("attention_ms")):
            continue
        one = share.Share(float(theirs["device_ms"]), float(theirs["attention_ms"]))
        compiled = [found.get((who + name, True), {}) for who in (TIMM, FUSED)]
        lines.append(
            (
                name,
                *_rates(theirs, ours),
                f"{one.attention_ms:.1f} / {one.all_ms:.1f} ({one.part:.0%})",
                f"{float(ours['attention_ms']):.1f}",
                f"{one.predicted(float(ours['attention_ms'])):.2f}x",
                f"{one.bound():.2f}x",
                *_rates(*compiled),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(path: Path) -> str:
    """The README's tables of one machine's file: a setting and :func:`render` for each batch and dtype."""
    rows = records.read(path, records.FUSED_COLUMNS)
    parts = []
    for key in dict.fromkeys((row["gpu"], row["batch"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["gpu"], row["batch"], row["dtype"]) == key]
        versions = ", ".join(f"{name} {mine[0][name]}" for name in ("torch", "triton", "timm") if mine[0][name])
        names = list(dict.fromkeys(row["model"].partition("/")[2] for row in mine))
        parts.append(f"{key[0]}, {key[2]}, batch {key[1]}, training, {versions}.\n\n{render(mine, names)}")
    return "\n\n".join(parts)


def _rates(theirs: Mapping[str, str], ours: Mapping[str, str]) -> tuple[str, str, str]:
    rates = theirs.get("images_per_s"), ours.get("images_per_s")
    gain = f"{float(rates[1]) / float(rates[0]):.2f}x" if all(rates) else "-"
    return rates[0] or "-", rates[1] or "-", gain
