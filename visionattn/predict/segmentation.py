"""Segmentors: a class for every pixel, laid over the picture."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from visionattn.segmentation import stack
from visionattn.training.errors import UserError, first_line
from visionattn.training.trained import Running

from . import drawing
from .pictures import Named

SIDE = 640  # pixels of a drawing


class _Plain(ast.NodeTransformer):
    """``dict(a=1)`` as ``{"a": 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args:
            raise ValueError(f"line {node.lineno} calls something")
        self.generic_visit(node)
        keys: list[ast.expr | None] = []
        values: list[ast.expr] = []
        for part in node.keywords:
            spread = part.arg is None and isinstance(part.value, ast.Dict)  # **{"not-a-name": 1}
            keys += part.value.keys if spread else [ast.Constant(part.arg)]
            values += part.value.values if spread else [part.value]
        return ast.copy_location(ast.Dict(keys, values), node)


def read_config(text: str) -> dict[str, Any]:
    """The sections of a config as mmengine writes it into checkpoints: ``name = dict(...)``. Nothing in it is run.

    Raises:
        ValueError: where it holds more than names of plain values.
    """
    sections = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ValueError(f"line {statement.lineno} is no assignment")
        sections[statement.targets[0].id] = ast.literal_eval(_Plain().visit(statement.value))
    return sections


@dataclass(frozen=True)
class Classes:
    """The answer of a segmentor.

    Attributes:
        name: of the picture.
        classes: names.
        palette: uint8 [classes, 3].
        mask: a class for every pixel, [H, W].
    """

    name: str
    classes: list[str]
    palette: np.ndarray
    mask: np.ndarray

    def shares(self) -> list[tuple[int, float]]:
        """(class, part of the pixels) of each that is there, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes)) / self.mask.size
        return [(int(i), float(counts[i])) for i in np.argsort(-counts) if counts[i] > 0]

    def record(self) -> dict[str, Any]:
        return dict(shares=[{"class": self.classes[i], "index": i, "share": round(n, 6)} for i, n in self.shares()])

    def summary(self) -> str:
        return ", ".join(f"{self.classes[i]} {100 * n:.1f} %" for i, n in self.shares()[:4])

    def overlay(self, image: Image.Image) -> Image.Image:
        """The classes' colours over the picture."""
        mixed = 0.45 * np.asarray(image, np.float32) + 0.55 * self.palette[self.mask].astype(np.float32)
        return Image.fromarray(mixed.astype(np.uint8))

    def draw(self, image: Image.Image) -> Image.Image:
        left, right = (drawing.scaled(part, (SIDE, SIDE)) for part in (image, self.overlay(image)))
        names, line, gap = self.shares(), 22, 12
        width = 2 * left.width + 3 * gap
        columns = max(1, width // 210)
        rows = -(-len(names) // columns)
        sheet = Image.new("RGB", (width, left.height + rows * line + 3 * gap), drawing.PAPER)
        sheet.paste(left, (gap, gap))
        sheet.paste(right, (left.width + 2 * gap, gap))
        pen = ImageDraw.Draw(sheet)
        for number, (i, share) in enumerate(names):
            x, y = gap + number % columns * 210, left.height + 2 * gap + number // columns * line
            pen.rectangle((x, y + 1, x + 14, y + 15), fill=tuple(self.palette[i].tolist()), outline=drawing.INK)
            text = drawing.fit_text(f"{self.classes[i]} {100 * share:.1f} %", 13, 180)
            pen.text((x + 22, y), text, drawing.INK, drawing.font(13))
        return sheet

    def tile(self, image: Image.Image) -> drawing.Tile:
        return drawing.tile(self.overlay(image), [self.summary(), self.name])


class SegmentorPredictor:
    """The predictor of a segmentor's checkpoint; the model and what pictures go through are those of its config.

    Args:
        path: of the checkpoint.
        source: what the user called it.
        running: where and how to compute.

    Raises:
        UserError: where mmsegmentation is missing, or the checkpoint is damaged or says no model.
    """

    kind = "segmentation"

    def __init__(self, path: Path, source: str, running: Running):
        stack.load_mmseg()
        from mmengine.config import ConfigDict
        from mmengine.dataset import Compose
        from mmseg.registry import MODELS

        from visionattn.segmentation import plugin  # noqa: F401  registers backbones and segmentors

        if running.device.type == "cpu":
            stack.use_cpu()
        found = stack.read_checkpoint(path)
        about = found["meta"].get("dataset_meta") or {}
        try:
            config = read_config(found["meta"]["cfg"])
            self.classes = [str(name) for name in about["classes"]]
            model = dict(config["model"], backbone=dict(config["model"]["backbone"]))
            pipeline = config["val_dataloader"]["dataset"]["pipeline"]
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise UserError(f"checkpoint {path} does not say its model and classes: {error}") from None
        palette = about.get("palette") or np.random.default_rng(0).integers(40, 256, (len(self.classes), 3)).tolist()
        self.palette = np.array(palette, np.uint8)
        name = str(model["backbone"].get("name", model["backbone"].get("type")))
        if model["backbone"].get("type") == "VisionAttnBackbone":
            model["backbone"].update(checkpoint=None, pretrained=False, compile=False)
        if model.get("type") == "Segmentor":
            model["precision"] = "bf16" if running.precision == "bf16" else "fp32"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks of mmsegmentation to its own developers
                self.network = MODELS.build(ConfigDict(model))
            self.network.load_state_dict(found["state_dict"])
            self.pipeline = Compose([ConfigDict(step) for step in pipeline])
        except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise UserError(f"checkpoint {path} cannot be built: {reason}") from None
        self.network.to(running.device).eval()
        head = str(config["model"]["decode_head"].get("type")) if "decode_head" in config["model"] else ""
        self.about: dict[str, Any] = dict(
            source=source, model=f"{head} {name}".strip(), weights=path.name, classes=len(self.classes))  # fmt: skip

    @torch.inference_mode()
    def __call__(self, names: Sequence[Named], images: Sequence[Image.Image]) -> list[Classes]:
        from mmengine.dataset import pseudo_collate

        answers = []
        for named, image in zip(names, images):  # pictures of a list have sizes of their own
            pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])  # BGR, as pipelines have it
            size = pixels.shape[:2]
            info = dict(img=pixels, img_path=str(named.path), img_shape=size, ori_shape=size, seg_fields=[],
                        reduce_zero_label=False)  # fmt: skip
            (sample,) = self.network.test_step(pseudo_collate([self.pipeline(info)]))
            mask = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)
            answers.append(Classes(named.label, self.classes, self.palette, mask))
        return answers
