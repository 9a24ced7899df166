"""The training loop beside the bare compiled step of the same model: what data, averaging, clipping and logs cost."""

import csv
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from visionattn.training import train
from visionattn.training.config import TrainConfig

from .models import measure_model
from .records import Records
from .timing import Timing

LOG_STEPS = 20


def _loop(
    model: str, batch: int, size: int, mode: str | None, workers: int, steps: int, device: torch.device
) -> Timing:  # fmt: skip
    """Milliseconds of a step of ``visionattn train`` on random pixels in memory; the first half of the run warms up."""
    config = TrainConfig()
    config.model.name = model
    config.data.dataset, config.data.image_size, config.data.workers = "noise", size, workers
    config.data.noise_train, config.data.eval_batch_size = batch * steps, batch
    config.optim.batch_size, config.schedule.epochs = batch, 2
    config.run.device, config.run.channels_last, config.run.log_steps = device.type, True, min(LOG_STEPS, steps)
    config.run.compile, config.run.compile_mode = mode is not None, mode or "default"
    config.run.eval_every = config.run.checkpoint_epochs = 2
    config.run.progress = False
    with tempfile.TemporaryDirectory() as folder:
        config.run.dir = str(Path(folder) / "run")
        try:
            train.run(config)
        finally:
            torch.use_deterministic_algorithms(False)  # as a run asks for, for the whole process
        with open(Path(config.run.dir) / "steps.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) > steps]
    found = sorted(batch * 1e3 / float(row["images_per_s"]) for row in rows)
    return Timing(found[len(found) // 5], statistics.median(found), found[(4 * len(found)) // 5])


def run(
    model: str, batch: int, size: int, mode: str | None, workers: int, steps: int, device: torch.device,
    kept: Records, origin: dict[str, str], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measures both and keeps them: the loop first, then the step alone on one batch that lies on the device.

    Args:
        model: a name for timm.create_model.
        batch: images a step.
        size: height and width.
        mode: torch.compile's, None for eager.
        workers: processes that load.
        steps: of the loop that are timed, after as many that are not.
        device: where to train; under autocast to bfloat16 on a GPU.
        kept: where the results go.
        origin: what they were measured with.
        say: takes lines for the user.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loop = _loop(model, batch, size, mode, workers, steps, device)
    bare = measure_model(model, batch, size, device, dtype, mode, True, min(steps, 60), True)
    found = {"loop": loop, "bare step": Timing(bare["p20_ms"], bare["p50_ms"], bare["p80_ms"])}
    for name, timing in found.items():
        kept.add(model=model, batch=batch, size=size, dtype=str(dtype).removeprefix("torch."), compiled=mode or "no",
                 implementation=name, images_per_s=batch * 1e3 / timing.p50, p20_ms=timing.p20, p50_ms=timing.p50,
                 p80_ms=timing.p80, **origin)  # fmt: skip
        say(f"{name}: {batch * 1e3 / timing.p50:.0f} images/s, {timing.p50:.3g} ms a step")
    kept.write()
    say(f"the loop costs {loop.p50 / found['bare step'].p50 - 1:+.2%}")
