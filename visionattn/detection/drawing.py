"""Pictures of what is there beside what was found."""

from __future__ import annotations

import colorsys
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

HEIGHT, GAP = 320, 4


def colour(label: int) -> tuple[int, int, int]:
    """A colour of its own for each of any number of classes."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def drawn(
    image: torch.Tensor, objects: dict[str, torch.Tensor], classes: list[str], height: int = HEIGHT
) -> Image.Image:
    """An image with boxes, names, scores and masks on it.

    Args:
        image: uint8 [3, H, W].
        objects: boxes [n, 4], labels [n]; scores [n] and masks ([n, H, W] or [n, 1, H, W], on above 0.5) if there.
        classes: names of the labels.
        height: of the drawing in pixels.
    """
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    for mask, label in zip(objects.get("masks", ()), objects["labels"].tolist()):
        shown = mask.reshape(pixels.shape[:2]).numpy() > 0.5
        pixels[shown] = 0.5 * pixels[shown] + 0.5 * np.array(colour(label), np.float32)
    zoom = height / image.shape[1]
    size = (max(1, round(image.shape[2] * zoom)), height)
    canvas = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    scores = objects.get("scores")
    for i, (box, label) in enumerate(zip(objects["boxes"].tolist(), objects["labels"].tolist())):
        x1, y1, x2, y2 = (value * zoom for value in box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(label), width=2)
        text = classes[label] + (f" {float(scores[i]):.2f}" if scores is not None else "")
        place = (min(x1 + 2, size[0] - pen.textlength(text, font) - 2), max(0.0, y1 - 15 if y1 >= 15 else y1 + 2))
        pen.rectangle(pen.textbbox(place, text, font), fill=(0, 0, 0))
        pen.text(place, text, fill=colour(label), font=font)
    return canvas


def draw_sheet(
    path: Path,
    rows: list[tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]],
    classes: list[str],
    columns: int = 2,
) -> Path:
    """Write a PNG of pairs: an image with what is there, and the same with what was found.

    Args:
        path: the file to write.
        rows: (image, what is there, what was found) each.
        classes: names of the labels.
        columns: pairs side by side.
    """
    pairs = []
    for image, truth, found in rows:
        left, right = drawn(image, truth, classes), drawn(image, found, classes)
        pair = Image.new("RGB", (left.width + GAP + right.width, HEIGHT), "white")
        pair.paste(left, (0, 0))
        pair.paste(right, (left.width + GAP, 0))
        pairs.append(pair)
    width, header = max(pair.width for pair in pairs), 24
    lines = -(-len(pairs) // columns)
    across = min(columns, len(pairs))
    sheet = Image.new("RGB", (across * (width + 3 * GAP) - 3 * GAP, header + lines * (HEIGHT + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, pair in enumerate(pairs):
        left = (i % columns) * (width + 3 * GAP)
        sheet.paste(pair, (left, header + (i // columns) * (HEIGHT + GAP)))
    pen.text((4, 4), "each pair: what is there | what was found", fill="black", font=font)
    temporary = path.with_name(f".{path.stem}.tmp.png")
    sheet.save(temporary)
    os.replace(temporary, path)
    return path
