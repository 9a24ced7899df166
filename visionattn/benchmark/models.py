"""Whole models, ours beside timm's (fused or not), NATTEN's and their own references in one run: images a second, peak
memory."""

import contextlib
import gc
import time
from collections.abc import Callable, Sequence

import timm
import torch
import torch.nn.functional as F

from visionattn.fusing import fuse
from visionattn.kernels import referenced
from visionattn.training.errors import UserError, first_line

from . import natten_models, natten_peer, side_by_side
from .records import Records
from .side_by_side import Turns
from .timing import Timing

FUSED = "fused/"  # timm's model after visionattn.fuse
REFERENCE = "reference/"  # ours on the ops' references


def timm_name(name: str) -> str:
    """The name without its prefix: ``timm/``, ``fused/``, ``reference/`` or one of :mod:`.natten_models`."""
    return natten_models.split(name)[1].removeprefix("timm/").removeprefix(FUSED).removeprefix(REFERENCE)


def check_names(names: Sequence[str], device: torch.device) -> None:
    """Raises UserError for a name that timm does not know or that cannot run here, before anything is measured."""
    for name in names:
        prefix, plain = natten_models.split(name)
        if prefix and plain not in natten_models.known():
            raise UserError(f"{name!r}: {prefix} takes one of {', '.join(natten_models.known())}")
        reason = natten_peer.why_not(device) if prefix == natten_models.NATTEN else None
        if reason:
            raise UserError(f"cannot measure {name}: {reason}")
        if not timm.is_model(timm_name(name)):
            family = timm_name(name).split("_")[0]
            known = timm.list_models(f"{family}*")[:8] or timm.list_models("gna*")
            raise UserError(f"no model is named {name!r}; for example: {', '.join(known)}")
        ours = timm.model_entrypoint(timm_name(name)).__module__.startswith("visionattn")
        if name.startswith(REFERENCE) and not ours:
            raise UserError(f"{name!r}: {REFERENCE} takes a model of visionattn's")
        if name.startswith(FUSED):
            report = fuse(timm.create_model(timm_name(name), device="meta"))
            if not report:
                raise UserError(f"{name!r}: {str(report).replace(chr(10), ';')}")


def _steps(
    fn: Callable[[], object], device: torch.device, steps: int, turns: Turns
) -> tuple[Timing, float, float | None]:
    """Percentiles of a step in ms over ``steps`` after a warm-up, seconds of the first call, peak memory in GiB."""
    on_gpu = device.type == "cuda"

    def synchronize() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    synchronize()
    start = time.perf_counter()
    fn()
    synchronize()
    first = time.perf_counter() - start
    with turns.timing():
        for _ in range(max(1, steps // 4)):
            fn()
        synchronize()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()  # of what is reserved: CUDA graphs' pools do not count as allocated
        # Steps are timed in groups without a wait between them, as a training loop runs them.
        group = max(1, steps // 5)
        times = []
        for _ in range(5 if steps >= 5 else steps):
            start = time.perf_counter()
            for _ in range(group):
                fn()
            synchronize()
            times.append((time.perf_counter() - start) * 1e3 / group)
        memory = torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None
    cuts = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return Timing(*cuts.tolist()), first, memory


def measure_model(
    name: str,
    batch: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: str | None,
    channels_last: bool,
    steps: int,
    training: bool,
    turns: Turns | None = None,
) -> dict[str, object]:
    """One pass of one model as the columns of a record.

    Training is forward, cross-entropy, backward and a fused AdamW step; both passes run under autocast to ``dtype``
    (none for float32) with a batch that is already on the device. ``turns`` says when it has the device for itself.
    """
    turns = turns or Turns()
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build(name, size).to(device=device, memory_format=layout).train(training)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    note = None
    if name.startswith(natten_models.NATTEN):
        with turns.searching():
            note = natten_models.tune(model, images, dtype, training)
    labels = torch.randint(1000, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) if training else None
    # Dynamo keeps what it compiled; the next model starts without it.
    torch._dynamo.reset()
    network = torch.compile(model, mode=compiled) if compiled else model

    def autocast() -> torch.autocast:
        mixed = dtype != torch.float32
        return torch.autocast(device.type, dtype=dtype if mixed else torch.bfloat16, enabled=mixed)

    def train_step() -> None:
        with autocast():
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def infer() -> None:
        with torch.no_grad(), autocast():
            network(images)

    with referenced() if name.startswith(REFERENCE) else contextlib.nullcontext():
        timing, first, memory = _steps(train_step if training else infer, device, steps, turns)
    return dict(
        images_per_s=batch * 1e3 / timing.p50,
        p20_ms=timing.p20,
        p50_ms=timing.p50,
        p80_ms=timing.p80,
        peak_gib=memory,
        first_call_s=first,
        parameters_m=parameters,
        note=note,
    )


def build(name: str, size: int) -> torch.nn.Module:
    """The model of that name, with 1000 classes, for images of ``size``; raises UserError where that fails."""
    prefix, plain = natten_models.split(name)[0], timm_name(name)
    options = {"rel_bias": False} if prefix else {}
    if _takes_size(name):
        options["img_size"] = size
    try:
        model = timm.create_model(plain, num_classes=1000, **options)
    except Exception as error:
        raise UserError(f"cannot build {name} for {size}x{size} images: {error}") from None
    if name.startswith(FUSED):
        fuse(model)
    return natten_models.replace(model) if prefix == natten_models.NATTEN else model


def _takes_size(name: str) -> bool:
    """Whether the model has one image size it must be built for (timm's configurations say so)."""
    cfg = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
    return bool(cfg and cfg.fixed_input_size)


def run(
    names: Sequence[str],
    records: Records,
    batch: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: str | None,
    channels_last: bool,
    steps: int,
    passes: Sequence[str],
    origin: dict[str, str],
    jobs: int,
    say: Callable[[str], None],
) -> None:
    """Measures every model's ``training`` and ``inference`` and writes the records after each.

    ``jobs`` of them compile at once where it is more than one, each in a process of its own; what is timed is alone.
    """
    check_names(names, device)
    wanted = [(name, batch, size, device, dtype, compiled, channels_last, steps, one == "training")
              for name in names for one in passes]  # fmt: skip
    for job, values in side_by_side.run(_measure, wanted, jobs) if jobs > 1 else ((x, _measure(*x)) for x in wanted):
        name, one = job[0], "training" if job[-1] else "inference"
        row = records.add(
            model=name,
            batch=batch,
            size=size,
            dtype=str(dtype).removeprefix("torch."),
            compiled=compiled or "no",
            channels_last=channels_last,
            **origin,
            **{"pass": one},
            **values,
        )
        records.write()
        figures = f"{row['images_per_s']} images/s, {row['peak_gib'] or '-'} GiB"
        figures += f", first call {row['first_call_s']} s"
        said = ", ".join(part for part in (figures if row["images_per_s"] else "", row["note"]) if part)
        say(f"{name} {one}{f' compiled ({compiled})' if compiled else ''}: {said}")


def _measure(name: str, *args: object) -> dict[str, object]:
    """As :func:`measure_model`; what fails is a note, so that the other models of a long run are not lost."""
    import visionattn  # noqa: F401  registers our models, in a new process too

    try:
        return measure_model(name, *args)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        return dict(note=f"{type(error).__name__}: {first_line(error)[:120]}")
    finally:
        gc.collect()  # the next model's peak is its own
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
