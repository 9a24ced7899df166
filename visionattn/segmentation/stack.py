"""mmsegmentation 1.2, mmengine 0.10 and mmcv-lite 2.1 on today's PyTorch: every workaround once, with its reason."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from visionattn.training.errors import UserError

PACKAGES = ("mmseg", "mmengine", "mmcv", "ftfy", "regex", "setuptools")


def load_mmseg() -> None:
    """Import mmsegmentation with all that it registers.

    Raises:
        UserError: where a package is missing; it says what to install.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"segmentation needs {', '.join(missing)}: run pip install 'visionattn[seg]'")
    # Python 3.12 has no distutils, which mmengine's report of the machine imports; setuptools brings it when imported.
    importlib.import_module("setuptools")
    if "mmseg.models" not in sys.modules:
        _import_without_compiled_ops()
        _count_pixels_without_sorting()
    from mmseg.utils import register_all_modules

    # Outside a Runner nothing is registered yet, and the default scope decides in which registry a type is looked up.
    register_all_modules(init_default_scope=True)


class _NoOps(types.ModuleType):
    """Has every function that is asked for, as None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _import_without_compiled_ops() -> None:
    """``import mmseg.models`` imports mmcv.ops for losses and heads of its own, whose module mmcv-lite does not have.

    A stand-in makes that import succeed. It must go afterwards: mmengine looks for the module to find out whether the
    compiled ops are there.
    """
    stand_in = find_spec("mmcv._ext") is None
    if stand_in:
        sys.modules["mmcv._ext"] = _NoOps("mmcv._ext")
    try:
        importlib.import_module("mmseg.models")
    except ImportError as error:
        raise UserError(f"mmsegmentation cannot be imported ({error}): run pip install 'visionattn[seg]'") from None
    finally:
        if stand_in:
            del sys.modules["mmcv._ext"]


def _count_pixels_without_sorting() -> None:
    """The accuracy that heads log beside their losses, by argmax.

    mmsegmentation sorts the classes of every pixel, the slowest kernel of an iteration on a GPU, and then makes the
    host wait for the number of pixels that count.
    """
    from mmseg.models.decode_heads import decode_head

    decode_head.accuracy = pixel_accuracy


def pixel_accuracy(pred: torch.Tensor, target: torch.Tensor, ignore_index: int | None = None) -> torch.Tensor:
    """Pixels whose first choice is right, in percent of those that count.

    Shapes: pred [B, classes, H, W], target [B, H, W] -> [1], float32.
    """
    right = pred.argmax(1) == target
    if ignore_index is None:
        return 100 * right.float().mean().reshape(1)
    counts = target != ignore_index
    return (100 * (right & counts).sum() / counts.sum().clamp(min=1)).float().reshape(1)


def use_cpu() -> None:
    """Stay off the GPU: mmengine takes one wherever it finds one, by a constant that it sets when it is imported."""
    import mmengine.device.utils as device

    device.DEVICE = "cpu"


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of mmengine, read without running anything that it contains.

    PyTorch refuses what is not a tensor or a plain value unless it is named; mmengine keeps its smoothed logs as
    objects of its own that hold arrays and scalars of NumPy.

    Raises:
        UserError: where it is missing, damaged or no checkpoint of a segmentor.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def statistic(owner: type, name: str) -> Any:
        """What pickle calls getattr for: the functions that summarise a log."""
        if owner is not HistoryBuffer or name not in ("mean", "max", "min", "current"):
            raise ValueError(f"it asks for {name} of {owner}")
        return getattr(owner, name)

    multiarray = np._core.multiarray
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar]
    allowed += [(statistic, "builtins.getattr")]
    allowed += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool", "uint8")]
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # each kind of damage has an error of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        unsafe = [line for line in lines if "Unsupported global" in line]
        raise UserError(f"checkpoint {path} cannot be read: {(unsafe or lines)[0].strip()}") from None
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict) or "meta" not in found:
        raise UserError(
            f"checkpoint {path} is not one of a segmentor; weights of a backbone go to model.backbone.checkpoint"
        )
    return found
