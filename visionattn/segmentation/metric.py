"""Mean intersection over union, with every class of it kept."""

from __future__ import annotations

from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class SceneIoU(IoUMetric):
    """mmsegmentation's IoUMetric whose result also has ``IoU.<class>`` of each class, in percent.

    Its result has aAcc, mIoU and mAcc in percent; classes that neither picture nor prediction shows count for nothing.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """From the areas of all pictures (intersection, union, predicted, labelled) to percent."""
        areas = [sum(column) for column in zip(*results)]
        metrics = super().compute_metrics(results)
        iou = areas[0] / areas[1]
        if not iou.isfinite().any():
            print_log("no picture shows any class", logger="current")
        for name, value in zip(self.dataset_meta["classes"], iou.tolist()):
            metrics[f"IoU.{name}"] = round(100 * value, 2)
        return {key: round(float(value), 2) for key, value in metrics.items()}
