"""Registers backbone, segmentor, data sets, metric and optimiser groups with mmsegmentation when it is imported."""

from . import stack

stack.load_mmseg()

from .backbone import VisionAttnBackbone  # noqa: E402  mmsegmentation cannot be imported before
from .data import ADE20K, CamVid, SceneFolder, ShapesScenes  # noqa: E402
from .groups import LayerDecayConstructor  # noqa: E402
from .loop import StatelessLoop, StepBatches  # noqa: E402
from .metric import SceneIoU  # noqa: E402
from .segmentor import Segmentor  # noqa: E402

__all__ = [
    "ADE20K",
    "CamVid",
    "LayerDecayConstructor",
    "SceneFolder",
    "SceneIoU",
    "Segmentor",
    "ShapesScenes",
    "StatelessLoop",
    "StepBatches",
    "VisionAttnBackbone",
]
