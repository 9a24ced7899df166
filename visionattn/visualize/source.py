"""The model and the image of a picture, from what a command line names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, resize

from visionattn.training import checkpoint, network, shapes, sources
from visionattn.training.errors import UserError

FRESH_CLASSES = [str(i) for i in range(1000)]  # of a model whose weights say nothing about them


@dataclass
class Source:
    """A model and how it wants its images.

    Attributes:
        name: of the model, with what its weights are.
        model: in evaluation mode, on the CPU, float32.
        side: of the short side of its images, in pixels.
        mean, std: of the channels in [0, 1].
    """

    name: str
    model: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """An image beside what a network sees of it.

    Attributes:
        image: as it is.
        size: rows and columns of pixels that the network sees.
        input: [1, 3, *size], normalised.
    """

    image: Image.Image
    size: tuple[int, int]
    input: torch.Tensor = field(repr=False)

    def seen(self, y: int, x: int) -> tuple[float, float]:
        """A pixel of the image, its centre, in the coordinates of what the network sees.

        Raises:
            UserError: where the image has no such pixel.
        """
        width, height = self.image.size
        if not (0 <= y < height and 0 <= x < width):
            raise UserError(
                f"--at must be a pixel of the image, rows 0 to {height - 1} and columns 0 to {width - 1}, got {y},{x}"
            )
        return (y + 0.5) * self.size[0] / height, (x + 0.5) * self.size[1] / width


def load(name: str | None, pretrained: bool, weights: str | None) -> Source:
    """A model by its name in timm, of a run or checkpoint folder of ours, or of a file of weights.

    Args:
        name: for ``timm.create_model``; where ``weights`` is a run it may be None.
        pretrained: take the published weights.
        weights: a run's folder, one of its checkpoints, or a file.

    Raises:
        UserError: unknown name, missing or foreign weights; both kinds of weights, or nothing, asked for.
    """
    if pretrained and weights:
        raise UserError("give either --pretrained or --checkpoint")
    state = _state(weights)
    name = name or state.get("model")
    if name is None:
        raise UserError(f"--model must name the model of {weights}: a file of weights does not say it" if weights else
                        "give --model NAME, or --checkpoint with a run's folder")  # fmt: skip
    try:
        torch.manual_seed(0)  # fresh weights are the same every time
        options = state.get("kwargs", {}) if name == state.get("model") else {}
        model = network.build("--model", name, options, FRESH_CLASSES, pretrained, weights)
    except UserError as error:
        raise UserError(str(error).replace("checkpoint", "--checkpoint", 1)) from None
    except Exception as error:  # whatever a hub's client raises without a network
        if not pretrained:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the published weights of {name} cannot be fetched: {reason}") from None
    known = getattr(model, "pretrained_cfg", None) or timm.get_pretrained_cfg(name).to_dict()
    data = state.get("config", {}).get("data", {})
    side = data.get("image_size") or min(known["input_size"][1:])
    said = "published weights" if pretrained else f"weights of {Path(weights).name}" if weights else "random weights"
    mean, std = (tuple(data.get(key) or known[key]) for key in ("mean", "std"))
    return Source(f"{name}, {said}", model.eval(), side, mean, std)


def _state(weights: str | None) -> dict:
    """What a run of ours notes beside its weights; empty for a file of weights."""
    if weights is None or not Path(weights).is_dir():
        return {}
    try:
        folder = checkpoint.find(Path(weights))
    except UserError:
        raise UserError(f"--checkpoint {weights} is no checkpoint and no run folder with one") from None
    try:
        state = json.loads((folder / checkpoint.STATE).read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError) as error:
        raise UserError(f"--checkpoint {folder / checkpoint.STATE} cannot be read: {error}") from None


def open_image(path: Path | None) -> Image.Image:
    """The RGB picture of a file; a generated scene for None.

    Raises:
        UserError: where there is no such file, or no picture in it.
    """
    if path is None:
        return Image.fromarray(shapes.draw_scene(3, "val", size=(240, 320), objects=4, object_scale=(0.2, 0.3)).image)
    if not path.is_file():
        raise UserError(f"--image {path}: no such file")
    return sources.decode(open(path, "rb"), str(path))  # which closes it


def see(image: Image.Image, source: Source, size: tuple[int, int] | int | None) -> Picture:
    """The image as a network gets it: whole, resized to (rows, columns), or to a short side of so many pixels, its
    model's own for None; models take images of any size."""
    width, height = image.size
    if not isinstance(size, tuple):
        side = size or source.side
        scale = side / min(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = resize(pil_to_tensor(image).float() / 255, list(size), antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(x)[:, None, None] for x in (source.mean, source.std))
    return Picture(image, size, ((pixels - mean) / std)[None])


def tokens(pixels: tuple[int, int], positions: tuple[int, int]) -> tuple[float, float]:
    """Pixels to a position of a map, rows and columns: the power of two with which stems and downsamplers come from
    one to the other, or else their quotient."""
    for rounding in (lambda n, r: -(-n // r), lambda n, r: n // r):
        for power in range(12):
            if all(rounding(n, 2**power) == m for n, m in zip(pixels, positions)):
                return float(2**power), float(2**power)
    return pixels[0] / positions[0], pixels[1] / positions[1]


def position(point: tuple[float, float], pixels: tuple[int, int], positions: tuple[int, int]) -> tuple[int, int]:
    """The position of a map that holds a point of the network's image."""
    steps = tokens(pixels, positions)
    return tuple(min(int(p // step), m - 1) for p, step, m in zip(point, steps, positions))
