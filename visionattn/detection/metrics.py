"""COCO's average precision over all processes, by torchmetrics on pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torchmetrics.detection import MeanAveragePrecision

from .coco import Target

NAMES = {"map": "ap", "map_50": "ap50", "map_75": "ap75"}


class CocoPrecision:
    """Average precision of boxes, and of masks where wanted, at most 100 objects an image.

    Args:
        masks: judge masks too.
        world: number of processes; each sees images of its own.
    """

    def __init__(self, masks: bool, world: int = 1):
        kinds = ("bbox", "segm") if masks else ("bbox",)
        self.kinds, self.world = dict(zip(kinds, ("box", "mask"))), world
        # gathered below: torchmetrics' own way needs equally many images on every process
        self.metric = MeanAveragePrecision(iou_type=kinds, sync_on_compute=False)
        self.metric.warn_on_many_detections = False

    def names(self) -> list[str]:
        """What :meth:`compute` measures."""
        return [f"{kind}_{short}" for kind in self.kinds.values() for short in NAMES.values()]

    def update(self, found: list[dict[str, torch.Tensor]], targets: list[Target]) -> None:
        """Add images.

        Args:
            found: of each image boxes [n, 4] in pixels, scores [n], labels [n] and, for masks, masks [n, 1, H, W] in
                [0, 1], which count above 0.5.
            targets: what is on each, in the same pixels.
        """
        masks = len(self.kinds) > 1
        predictions = []
        for one in found:
            kept = {name: one[name].cpu() for name in ("boxes", "scores", "labels")}
            if masks:
                kept["masks"] = (one["masks"][:, 0] > 0.5).to(torch.uint8).cpu()
            predictions.append(kept)
        self.metric.update(predictions, [{name: value.cpu() for name, value in target.items()} for target in targets])

    def compute(self) -> dict[str, float]:
        """The precisions in [0, 1] over the images of all processes, the same on each; 0 where there was nothing."""
        if self.world > 1:
            return self._gathered()
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            values = self.metric.compute()
        prefix = {kind: f"{kind}_" if len(self.kinds) > 1 else "" for kind in self.kinds}
        return {
            f"{name}_{short}": max(0.0, float(values[f"{prefix[kind]}{key}"]))
            for kind, name in self.kinds.items()
            for key, short in NAMES.items()
        }

    def _gathered(self) -> dict[str, float]:
        mine = {name: getattr(self.metric, name) for name in self.metric._defaults}
        parts: list[Any] = [None] * self.world
        torch.distributed.gather_object(mine, parts if torch.distributed.get_rank() == 0 else None)
        answer: list[Any] = [None]
        if torch.distributed.get_rank() == 0:
            whole = CocoPrecision(len(self.kinds) > 1)
            for name in mine:
                setattr(whole.metric, name, [item for part in parts for item in part[name]])
            whole.metric._update_count = 1
            answer = [whole.compute()]
        torch.distributed.broadcast_object_list(answer)
        return answer[0]
