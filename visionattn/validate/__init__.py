"""Evaluation of trained classifiers: accuracy, real labels, calibration and speed."""

from .evaluate import Result, evaluate

__all__ = ["Result", "evaluate"]
