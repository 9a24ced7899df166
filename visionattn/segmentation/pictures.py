"""Predictions drawn over the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from PIL import Image, ImageDraw
from torch import nn

from .data import IGNORED

HEIGHT, GAP, LINE = 240, 6, 18  # pixels


def draw_predictions(model: nn.Module, dataset: BaseDataset, count: int, path: Path) -> None:
    """Write a PNG with one row a picture (picture, truth, prediction), and the classes' colours below.

    Args:
        model: a segmentor.
        dataset: in test mode; the pictures are spread evenly over it.
        count: pictures.
        path: the file to write.
    """
    count = min(count, len(dataset))
    palette = np.array(dataset.metainfo["palette"], np.uint8)
    rows, shown = [], set()
    model.eval()
    for number in range(count):
        index = (2 * number + 1) * len(dataset) // (2 * count)
        image, truth = dataset.read(dataset.get_data_info(index))
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[index]]))[0]
        found = sample.pred_sem_seg.data[0].cpu().numpy()
        shown |= set(np.unique(truth).tolist()) | set(np.unique(found).tolist())
        rows.append([_fit(part) for part in (image, over(image, truth, palette), over(image, found, palette))])
    width = max(sum(part.width + GAP for part in row) for row in rows)
    names = [(dataset.metainfo["classes"][i], tuple(palette[i].tolist())) for i in sorted(shown - {IGNORED})]
    places = _places([name for name, _ in names], width)
    below = places[-1][1] + LINE if places else 0
    sheet = Image.new("RGB", (width, LINE + sum(row[0].height + GAP for row in rows) + below + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    left = GAP // 2
    for title, part in zip(("picture", "truth", "prediction"), rows[0]):
        pen.text((left, 3), title, fill="black")
        left += part.width + GAP
    top = LINE
    for row in rows:
        left = GAP // 2
        for part in row:
            sheet.paste(part, (left, top))
            left += part.width + GAP
        top += row[0].height + GAP
    for (name, colour), (x, y) in zip(names, places):
        pen.rectangle((x, top + y + 3, x + 12, top + y + 14), fill=colour, outline="black")
        pen.text((x + 17, top + y + 3), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    sheet.save(unfinished, format="PNG")
    os.replace(unfinished, path)


def over(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The classes' colours over a picture (uint8 RGB [H, W, 3]); ignored pixels of the mask [H, W] stay as they are."""
    counted = mask < len(palette)
    mixed = image.astype(np.float32)
    mixed[counted] = 0.4 * mixed[counted] + 0.6 * palette[mask[counted].astype(np.int64)]
    return mixed.astype(np.uint8)


def _fit(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    scale = HEIGHT / picture.height
    kind = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return picture.resize((max(1, round(picture.width * scale)), HEIGHT), kind)


def _places(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Where each name of the legend stands, from left to right in as many lines as it takes."""
    places, x, y = [], GAP, 0
    for name in names:
        wide = 30 + 7 * len(name)
        if x + wide > width and x > GAP:
            x, y = GAP, y + LINE
        places.append((x, y))
        x += wide
    return places
