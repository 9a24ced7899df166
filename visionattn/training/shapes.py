"""The generated data set `shapes`: textured shapes on textured backgrounds, with exact masks and boxes.

A picture is a pure function of ``(seed, split, index)``, so there are no files, and a picture is the same on every
machine and in every run. One main object makes a classification sample (`Shapes`); `draw_scene` draws any number of
objects that may overlap, with the visible pixels of each, for segmentation and detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .parallel import in_processes
from .randomness import Purpose, seed_of

CLASSES = ("circle", "square", "triangle", "pentagon", "star", "cross", "ring", "crescent", "heart", "arrow")
SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Scene:
    """A generated picture and everything there is to know about it.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB.
        labels: int64 ``[n]``, index into `CLASSES`, from the rearmost object to the foremost.
        masks: bool ``[n, H, W]``, the pixels whose centre shows the object (not hidden by one before it).
        boxes: float32 ``[n, 4]``, ``x1, y1, x2, y2`` in pixels, tight around the mask: columns x1 to x2 - 1.
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


# --- Outlines: signed distances in the object's own coordinates, negative inside, exact to first order at the outline.


def _convex(x: np.ndarray, y: np.ndarray, corners: int) -> np.ndarray:
    """A regular polygon with circumradius 1 and a corner at the top."""
    angles = [math.pi / 2 + math.pi / corners + 2 * math.pi * i / corners for i in range(corners)]
    edges = [x * math.cos(angle) - y * math.sin(angle) for angle in angles]
    return np.maximum.reduce(edges) - math.cos(math.pi / corners)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - radius


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five tips at radius 1, inner corners at radius 0.45: one half tip, reached by folding the plane."""
    step = math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y), 2 * step) - step)  # 0 at an inner corner, step at a tip
    radius = np.hypot(x, y)
    inner, tip = (0.45, 0.0), (math.cos(step), math.sin(step))
    ex, ey = tip[0] - inner[0], tip[1] - inner[1]
    return ((radius * np.cos(angle) - inner[0]) * ey - radius * np.sin(angle) * ex) / math.hypot(ex, ey)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A square standing on its corner with a half disc on each upper side."""
    side = 0.56
    u, v = (x + y - 0.2) * math.sqrt(0.5), (x - y + 0.2) * math.sqrt(0.5)
    square = np.maximum(np.abs(u), np.abs(v)) - side
    return np.minimum.reduce([square, np.hypot(u + side, v) - side, np.hypot(u, v - side) - side])


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A triangular head at the top and a shaft."""
    slope = math.hypot(0.95, 0.8)
    head = np.maximum((np.abs(x) * 0.95 - (y + 1.0) * 0.8) / slope, y + 0.05)
    return np.minimum(head, _box(x, y - 0.47, 0.27, 0.53))


OUTLINES = {
    "circle": lambda x, y: _disc(x, y, 0.0, 0.0, 0.9),
    "square": lambda x, y: _box(x, y, 0.76, 0.76),
    "triangle": lambda x, y: _convex(x, y - 0.15, 3),
    "pentagon": lambda x, y: _convex(x, y, 5),
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.73) - 0.22,
    "crescent": lambda x, y: np.maximum(_disc(x, y, -0.2, 0.0, 0.95), -_disc(x, y, 0.28, 0.0, 0.76)),
    "heart": _heart,
    "arrow": _arrow,
}


# --- Texture and colour.


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A random pattern with values in [0, 1], float32 ``[H, W]``; x and y in picture widths."""
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    waves = rng.uniform(3, 11) * 2 * math.pi
    u = (x * math.cos(angle) + y * math.sin(angle)) * waves + phase
    v = (y * math.cos(angle) - x * math.sin(angle)) * waves
    kind = rng.integers(6)
    if kind == 0:  # a smooth gradient
        return 0.5 + 0.5 * np.sin(u / waves * 3)
    if kind == 1:  # soft stripes
        return 0.5 + 0.5 * np.sin(u)
    if kind == 2:  # hard stripes
        return (np.sin(u) > rng.uniform(-0.5, 0.5)).astype(np.float32)
    if kind == 3:  # a chequerboard
        return (np.sin(u) * np.sin(v) > 0).astype(np.float32)
    if kind == 4:  # dots
        return (np.sin(u) + np.sin(v) > rng.uniform(0.2, 1.0)).astype(np.float32)
    cells = rng.random((9, 9), dtype=np.float32)  # a mosaic
    return cells[(y * 8.99).astype(np.int64).clip(0, 8), (x * 8.99).astype(np.int64).clip(0, 8)]


def _palette(rng: np.random.Generator, figure: bool) -> np.ndarray:
    """Two colours of one texture, float32 ``[2, 3]`` in [0, 1]: light ones for figures, dark ones for the ground."""
    middle = rng.uniform(0.56, 0.92, 3) if figure else rng.uniform(0.08, 0.44, 3)
    spread = rng.uniform(-0.1, 0.1, 3)
    return np.clip(np.stack([middle - spread, middle + spread]), 0, 1).astype(np.float32)


def _paint(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A textured surface, float32 ``[H, W, 3]``."""
    pattern = _texture(rng, x, y).astype(np.float32)[..., None]
    return palette[0] + (palette[1] - palette[0]) * pattern


def _strokes(rng: np.random.Generator, canvas: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float) -> None:
    """Distractors: short straight strokes under the objects, drawn into ``canvas``."""
    for _ in range(rng.integers(0, 3)):
        cx, cy = rng.uniform(0, 1, 2)
        angle = rng.uniform(0, math.pi)
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        cover = np.clip(0.5 - _box(u, v, rng.uniform(0.08, 0.25), rng.uniform(0.01, 0.03)) / pixel, 0, 1)
        canvas += cover[..., None] * (rng.uniform(0, 1, 3).astype(np.float32) - canvas)


# --- Pictures.


def draw_scene(
    index: int,
    split: str = "train",
    seed: int = 0,
    size: int | tuple[int, int] = 64,
    objects: int | tuple[int, int] = 1,
    object_scale: tuple[float, float] = (0.34, 0.46),
) -> Scene:
    """Draw picture number ``index`` of a split.

    Args:
        index: number of the picture, from 0. Its first object is of class ``index % 10``, so a split is balanced.
        split: 'train', 'val' or 'test'.
        seed: seed of the whole data set.
        size: height and width in pixels, or one number for both.
        objects: number of objects, or the range (both ends included) that it is drawn from.
        object_scale: range of an object's circumradius, as a part of the picture's short side.

    Returns:
        A `Scene`. It has fewer objects than asked for where no place is left that shows at least half of each.

    Raises:
        ValueError: on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed_of(Purpose.SCENE, seed, SPLITS[split], index))
    unit = float(min(height, width))
    pixel = 1.0 / unit
    x = np.broadcast_to((np.arange(width, dtype=np.float32) + 0.5) * pixel, (height, width))
    y = np.broadcast_to(((np.arange(height, dtype=np.float32) + 0.5) * pixel)[:, None], (height, width))

    canvas = _paint(rng, x, y, _palette(rng, figure=False))
    _strokes(rng, canvas, x, y, pixel)

    low, high = (objects, objects) if isinstance(objects, int) else objects
    count = int(rng.integers(low, high + 1))
    labels: list[int] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []  # of each object, hidden pixels included
    for number in range(count):
        label = index % len(CLASSES) if number == 0 else int(rng.integers(len(CLASSES)))
        for _ in range(20):
            cover, mask = _place(rng, x, y, CLASSES[label], object_scale, (width / unit, height / unit), pixel)
            area = int(mask.sum())
            left = [other & ~mask for other in masks]
            if area and all(2 * int(part.sum()) >= whole for part, whole in zip(left, areas)):
                canvas += cover[..., None] * (_paint(rng, x, y, _palette(rng, figure=True)) - canvas)
                masks, areas, labels = [*left, mask], [*areas, area], [*labels, label]
                break

    light = rng.uniform(0.8, 1.15)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(0.01, 0.03)
    image = (np.clip(canvas * light + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    stack = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
    return Scene(image, np.array(labels, dtype=np.int64), stack, boxes_of(stack))


def _place(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    scale: tuple[float, float],
    extent: tuple[float, float],
    pixel: float,
) -> tuple[np.ndarray, np.ndarray]:
    """One object at a random place, angle, size and stretch: its anti-aliased cover [H, W] and its mask [H, W]."""
    radius = rng.uniform(*scale)
    margin = 0.95 * radius
    cx, cy = rng.uniform(margin, extent[0] - margin), rng.uniform(margin, extent[1] - margin)
    angle = rng.uniform(0, 2 * math.pi)
    stretch = math.exp(rng.uniform(-0.1, 0.1))
    u = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) / (radius * stretch)
    v = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / (radius / stretch)
    distance = OUTLINES[name](u, v)
    return np.clip(0.5 - distance * radius / pixel, 0, 1).astype(np.float32), distance < 0


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The tight boxes ``[n, 4]`` (x1, y1, x2, y2; float32) of masks ``[n, H, W]``; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _draw_images(split: str, seed: int, size: int, begin: int, end: int) -> np.ndarray:
    return np.stack([draw_scene(index, split, seed, size).image for index in range(begin, end)])


class Shapes:
    """The classification data set: one object a picture, all pictures drawn once and kept in memory as uint8.

    Args:
        split: 'train', 'val' or 'test'.
        length: number of pictures.
        size: height and width in pixels.
        seed: seed of the whole data set.
        processes: processes that draw; 1 draws in this one, None takes one a core.
    """

    classes = list(CLASSES)

    def __init__(self, split: str, length: int, size: int = 64, seed: int = 0, processes: int | None = 1):
        chunk = 500
        jobs = [(split, seed, size, begin, min(begin + chunk, length)) for begin in range(0, length, chunk)]
        self.images = np.concatenate(in_processes(_draw_images, jobs, processes))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), index % len(CLASSES)

    def name(self, index: int) -> str:
        """What a message calls picture ``index``."""
        return f"shapes picture {index}"


def contact_sheet(path: str, rows: int = 4, size: int = 64, zoom: int = 2, scenes: int = 5) -> None:
    """Write a PNG that shows the data set: one column a class, then rows of scenes with masks and boxes drawn in.

    Args:
        path: the file to write.
        rows: pictures of each class.
        size: height and width of a picture in pixels.
        zoom: how many pixels of the sheet one pixel of a picture becomes, a side.
        scenes: pictures with several objects in the last row; each is shown plain and with its masks and boxes.
    """
    tiles = [[draw_scene(row * 10 + column, "val", size=size).image for column in range(10)] for row in range(rows)]
    last = []
    for index in range(scenes):
        scene = draw_scene(index, "val", seed=1, size=size, objects=(2, 4), object_scale=(0.15, 0.3))
        marked = scene.image.astype(np.float32) * 0.5
        for mask, box in zip(scene.masks, scene.boxes.astype(int)):
            colour = np.array(np.random.default_rng(int(mask.sum())).uniform(80, 255, 3))
            marked[mask] = marked[mask] * 0.4 + colour * 0.6
            x1, y1, x2, y2 = box
            marked[[y1, y2 - 1], x1:x2] = 255
            marked[y1:y2, [x1, x2 - 1]] = 255
        last += [scene.image, marked.astype(np.uint8)]
    if last:
        blank = np.full((size, size, 3), 255, dtype=np.uint8)
        tiles.append((last + [blank] * 10)[:10])
    framed = [[np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=255) for tile in row] for row in tiles]
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in framed]))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)
