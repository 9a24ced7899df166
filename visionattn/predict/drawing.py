"""Drawing: text, bars beside a picture, and contact sheets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INK, QUIET, PAPER, TRACK = (33, 37, 41), (120, 126, 132), (255, 255, 255), (233, 236, 239)
BLUE, PALE, GREEN, RED = (47, 111, 178), (150, 184, 219), (46, 139, 87), (200, 62, 62)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of everything drawn, ``size`` pixels high; it has letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def fit_text(text: str, size: int, width: int) -> str:
    """The text, cut short with an ellipsis where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def scaled(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The picture as large as ``box`` (width, height) takes it; pixels of very small ones stay sharp squares."""
    factor = min(box[0] / image.width, box[1] / image.height)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    how = Image.Resampling.NEAREST if factor >= 4 else Image.Resampling.LANCZOS
    return image.resize(size, how)


@dataclass(frozen=True)
class Bar:
    """A line beside a picture.

    Attributes:
        text: what it is of.
        value: 0 to 1.
        colour: of the bar.
    """

    text: str
    value: float
    colour: tuple[int, int, int]


def beside(image: Image.Image, bars: Sequence[Bar], heading: str, footing: str, box: int = 384) -> Image.Image:
    """The picture, scaled to fit a square of ``box`` pixels, with bars to its right, a heading and a footing."""
    shown = scaled(image.convert("RGB"), (box, box))
    margin, panel, line = 20, 420, 50
    height = max(shown.height, 34 + line * len(bars)) + 2 * margin + 28
    sheet = Image.new("RGB", (shown.width + panel + 3 * margin, height), PAPER)
    sheet.paste(shown, (margin, margin))
    draw = ImageDraw.Draw(sheet)
    left, right = shown.width + 2 * margin, sheet.width - margin
    draw.text((left, margin - 3), fit_text(heading, 16, right - left), INK, font(16))
    for i, bar in enumerate(bars):
        y = margin + 34 + i * line
        number = f"{100 * bar.value:.1f} %"
        space = font(15).getlength(number)
        draw.text((left, y), fit_text(bar.text, 15, int(right - left - space - 16)), INK, font(15))
        draw.text((right - space, y), number, INK, font(15))
        draw.rounded_rectangle((left, y + 24, right, y + 36), 4, TRACK)
        end = left + (right - left) * bar.value
        if end - left >= 2:
            draw.rounded_rectangle((left, y + 24, end, y + 36), min(4, (end - left) / 2), bar.colour)
    draw.text((margin, height - margin - 12), fit_text(footing, 12, sheet.width - 2 * margin), QUIET, font(12))
    return sheet


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet, with lines under it and a frame in a colour of its own, if it has one."""

    image: Image.Image
    lines: Sequence[str]
    frame: tuple[int, int, int] | None = None


TILE = 160


def tile(image: Image.Image, lines: Sequence[str], frame: tuple[int, int, int] | None = None) -> Tile:
    """A tile whose picture is small already, so that many of them need little memory."""
    return Tile(scaled(image.convert("RGB"), (TILE, TILE)), lines, frame)


def contact_sheet(tiles: Sequence[Tile], heading: str) -> Image.Image:
    """All tiles in rows, about as wide as high, under a heading."""
    columns = min(len(tiles), max(3, round((1.5 * len(tiles)) ** 0.5)))
    rows = -(-len(tiles) // columns)
    lines = max(len(one.lines) for one in tiles)
    gap, text = 12, 16 * lines + 6
    wide, high = TILE + gap, TILE + text + gap
    sheet = Image.new("RGB", (max(columns * wide + gap, 480), rows * high + gap + 30), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap - 2), fit_text(heading, 14, sheet.width - 2 * gap), QUIET, font(14))
    for i, one in enumerate(tiles):
        x, y = gap + i % columns * wide, 30 + gap + i // columns * high
        corner = x + (TILE - one.image.width) // 2, y + (TILE - one.image.height) // 2
        sheet.paste(one.image, corner)
        if one.frame is not None:
            box = (corner[0] - 3, corner[1] - 3, corner[0] + one.image.width + 2, corner[1] + one.image.height + 2)
            draw.rectangle(box, outline=one.frame, width=3)
        for j, line in enumerate(one.lines):
            draw.text((x, y + TILE + 4 + 16 * j), fit_text(line, 12, TILE), QUIET if j else INK, font(12))
    return sheet
