"""Windows that are a fixed part of the image a model is built for, as timm's MaxViT and GC ViT have them."""

from __future__ import annotations

from timm.layers import to_2tuple


def image_window(img_size: int | tuple[int, int], ratio: int) -> tuple[int, int]:
    """The window (rows, columns) of models built for images of ``img_size`` pixels: ``img_size // ratio``.

    Raises:
        ValueError: for images smaller than one window's position.
    """
    window = tuple(n // ratio for n in to_2tuple(img_size))
    if min(window) < 1:
        raise ValueError(
            f"img_size must be at least {ratio} a side, for windows of img_size // {ratio}, got {img_size}; "
            "window_size= gives windows for smaller images"
        )
    return window
