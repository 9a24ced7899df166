"""Bars beside pictures and contact sheets: what is drawn where."""

import numpy as np
from PIL import Image

from visionattn.predict import drawing


def test_a_bar_is_as_long_as_its_value() -> None:
    bars = [drawing.Bar(str(value), value, drawing.BLUE) for value in (0.75, 0.25, 0.0)]
    pixels = np.asarray(drawing.beside(Image.new("RGB", (30, 20)), bars, "heading", "footing"))
    rows = [pixels[20 + 34 + 50 * i + 30] for i in range(3)]
    filled = [int((row == drawing.BLUE).all(1).sum()) for row in rows]
    whole = filled[0] + int((rows[0] == drawing.TRACK).all(1).sum())
    assert whole >= 400 and filled[2] == 0
    assert abs(filled[0] / whole - 0.75) < 0.01 and abs(filled[1] / whole - 0.25) < 0.01


def test_pictures_keep_their_shape_and_small_ones_their_pixels() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8))
    large = drawing.scaled(small, (64, 64))
    assert large.size == (32, 64)
    assert (np.asarray(large)[::8, ::8] == np.asarray(small)).all()


def test_text_that_is_too_wide_is_cut() -> None:
    cut = drawing.fit_text("word " * 50, 12, 100)
    assert cut.endswith("…") and drawing.font(12).getlength(cut) <= 100
    assert drawing.fit_text("two\nlines", 12, 100) == "two lines"


def test_every_tile_is_on_the_sheet_with_its_frame() -> None:
    colours = [(i * 9 % 256, 40, 255 - i * 9 % 256) for i in range(25)]
    tiles = [drawing.tile(Image.new("RGB", (50, 50), c), ["a", "b"], drawing.RED if i == 3 else None) for i, c in
             enumerate(colours)]  # fmt: skip
    sheet = drawing.contact_sheet(tiles, "heading")
    seen = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {*colours, drawing.RED} <= seen
