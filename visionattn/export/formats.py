"""The three forms: an ONNX file, a torch.export package, and a folder that timm loads."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from visionattn.training.errors import UserError, first_line
from visionattn.training.trained import Trained

from .graph import Graph

Exported = Callable[[Tensor], Tensor]


def require_onnx() -> None:
    """Raises UserError where a package that ONNX takes is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f'ONNX needs the package {name}: pip install "visionattn[export]"') from None


def about(trained: Trained, graph: Graph | None = None) -> dict[str, Any]:
    """What whoever runs the model has to know, as plain values."""
    data = trained.data
    found: dict[str, Any] = dict(
        architecture=trained.name, weights=trained.origin.weights, classes=trained.classes, mean=list(data.mean),
        std=list(data.std), image_size=data.image_size, interpolation=data.interpolation, crop_pct=data.crop_pct,
        crop_mode=data.crop_mode)  # fmt: skip
    if graph is not None:
        found.update(height=list(graph.height), width=list(graph.width))
    return found


def to_onnx(trained: Trained, graph: Graph, path: Path) -> Exported:
    """Write an ONNX file; its metadata hold what :func:`about` says.

    Returns:
        The model as onnxruntime runs it on the CPU from that file.

    Raises:
        UserError: where torch cannot convert the graph.
    """
    import onnxruntime

    names = {0: "batch"} | ({} if graph.fixed else {2: "height", 3: "width"})
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own passes
            program = torch.onnx.export(
                graph.program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
                dynamic_shapes=(names,))  # fmt: skip
    except Exception as error:  # the converter's errors have no common base
        reason = first_line(error)
        raise UserError(f"torch.onnx cannot convert the model: {reason[:300]}") from None
    finally:
        log.setLevel(before)
    program.model.metadata_props.update(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in about(trained, graph).items()}
    )
    program.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def to_package(trained: Trained, graph: Graph, path: Path) -> Exported:
    """Write a torch.export package (.pt2); its extra file ``about.json`` holds what :func:`about` says.

    Returns:
        The model as it is loaded from that file.
    """
    torch.export.save(graph.program, path, extra_files={"about.json": json.dumps(about(trained, graph))})
    return torch.export.load(path).module()


def to_folder(trained: Trained, path: Path) -> Exported:
    """Write a folder with model.safetensors and config.json, in timm's own layout.

    Returns:
        The model as ``timm.create_model("local-dir:...", pretrained=True)`` makes it from there.

    Raises:
        UserError: where timm cannot say in its configuration how the model was made.
    """
    data = trained.data
    labels: dict[str, Any] = {}
    if trained.certain or trained.descriptions:
        labels = dict(label_names=trained.classes)
        if trained.descriptions:
            labels["label_descriptions"] = {name: trained.descriptions.get(name, name) for name in trained.classes}
    preprocessing = dict(
        input_size=(3, data.image_size, data.image_size), mean=tuple(data.mean), std=tuple(data.std),
        interpolation="bicubic" if data.interpolation == "random" else data.interpolation, crop_pct=data.crop_pct,
        crop_mode=data.crop_mode)  # fmt: skip
    try:
        save_for_hf(trained.model, str(path), model_config=labels, safe_serialization=True, data_config=preprocessing)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"timm cannot save the model: {first_line(error)}") from None
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
