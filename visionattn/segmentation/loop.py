"""The training loop: what an iteration sees is a function of its number, so a resumed run goes on as if undisturbed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import DATA_SAMPLERS, LOOPS

from visionattn.training.randomness import Purpose, seed_all, seed_of
from visionattn.training.sampler import TrainingSampler

ENDLESS = 1 << 40


@DATA_SAMPLERS.register_module()
class StepBatches(TrainingSampler):
    """The classification tool's sampler as a ``batch_sampler`` of mmengine: keys ``(seed, epoch, index, copy)``.

    Args:
        sampler: mmengine's own, which brings the data set and the run's seed.
        batch_size: pictures a process and iteration.

    Raises:
        UserError: where the data set is smaller than the batch of all processes.
    """

    def __init__(self, sampler: Any, batch_size: int) -> None:
        rank, world = get_dist_info()
        self.sampler = sampler  # where mmengine's hooks look for it
        super().__init__(len(sampler.dataset), batch_size * world, ENDLESS, sampler.seed or 0, rank=rank, world=world)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for keys in super().__iter__():
            yield [(self.seed, *key) for key in keys]


@LOOPS.register_module()
class StatelessLoop(IterBasedTrainLoop):
    """mmengine's loop of iterations; order of pictures, augmentation and dropout depend on seed and iteration alone.

    mmengine itself repeats the order of the pictures after a resume by reading, and decoding, all that was seen before,
    and draws other random numbers than an undisturbed run. Needs :class:`StepBatches` and this package's data sets.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = None  # it would read ahead from the first picture on
        self.metrics: dict[str, float] | None = None  # of the last validation

    def run(self) -> Any:
        """Train, and validate in between."""
        runner = self.runner
        seed, rank, device = runner.seed or 0, runner.rank, next(runner.model.parameters()).device
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")  # mmengine's hooks see the whole run as one epoch
        self.dataloader.batch_sampler.start = self._iter
        batches = iter(self.dataloader)
        runner.model.train()
        while self._iter < self._max_iters and not self.stop_training:
            batch = next(batches)
            seed_all(seed_of(Purpose.STEP, seed, self._iter, 0, rank), device)
            self.run_iter(batch)
            self._decide_current_val_interval()
            last = self._iter == self._max_iters
            if runner.val_loop is not None and (last or self._validates()):
                self.metrics = runner.val_loop.run()
                runner.model.train()
        if self.metrics is None and runner.val_loop is not None:  # resumed when all was done
            self.metrics = runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _validates(self) -> bool:
        return self._iter >= self.val_begin and self._iter % self.val_interval == 0
