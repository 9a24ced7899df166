"""What a neighborhood is: its kernel, dilation, stride and causality per axis, and the maps it fits on."""

from typing import NamedTuple

from .._arguments import pair, switches


class Geometry(NamedTuple):
    """Per-axis (rows, columns) kernel, dilation and stride of a neighborhood, and whether it looks back only."""

    kernel: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    causal: tuple[bool, bool] = (False, False)

    def check_map(self, height: int, width: int) -> None:
        """Raises ValueError unless kernel * dilation fits on a ``height x width`` map."""
        for axis, n, k, d in zip(("height", "width"), (height, width), self.kernel, self.dilation, strict=True):
            if n // d < k:
                raise ValueError(
                    f"kernel_size * dilation must not exceed the map: {k} * {d} = {k * d} > {n} ({axis}); "
                    "pad the map or use a smaller kernel_size or dilation"
                )

    def is_closed(self, height: int, width: int) -> bool:
        """Whether every dilation group is exactly one kernel, and all its positions attend to all of them."""
        fits = (height, width) == (self.kernel[0] * self.dilation[0], self.kernel[1] * self.dilation[1])
        return fits and not any(self.causal)

    def is_shared(self, height: int, width: int, tile: tuple[int, int], chunk: tuple[int, int]) -> bool:
        """Whether all queries of a tile see the same keys, in whole chunks: of one stride, or the whole map."""
        axes = zip((height, width), *self, tile, chunk, strict=True)
        return all(
            k % c == 0 and not causal and (s % t == 0 or (n, d) == (k, 1)) for n, k, d, s, causal, t, c in axes
        )

    def pairs(self, height: int, width: int) -> int:
        """How many (query, key) pairs attend on a ``height x width`` map, per image and head."""
        count = 1
        for n, k, d, s, causal in zip((height, width), *self, strict=True):
            count *= _causal_pairs(n, k, d, s) if causal else n * k
        return count


def _causal_pairs(n: int, k: int, d: int, s: int) -> int:
    """Pairs along a causal axis: query i sees from its leader's k-th last key, or the first, up to itself."""
    lengths = ((n - group + d - 1) // d for group in range(d))
    return sum(
        i + 1 - max(min(i // s * s + s - 1, length - 1) - k + 1, 0) for length in lengths for i in range(length)
    )


def make_geometry(
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    is_causal: bool | tuple[bool, bool] = False,
) -> Geometry:
    """A validated :class:`Geometry` from scalars or (rows, columns) pairs.

    Raises TypeError for anything else and ValueError for a kernel or dilation below 1 or a stride outside 1..kernel.
    """
    geometry = Geometry(
        pair("kernel_size", kernel_size),
        pair("dilation", dilation),
        pair("stride", stride),
        switches("is_causal", is_causal),
    )
    if min(geometry.kernel) < 1:
        raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
    if min(geometry.dilation) < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    if any(not 1 <= s <= k for s, k in zip(geometry.stride, geometry.kernel, strict=True)):
        raise ValueError(
            f"stride must lie between 1 and kernel_size per axis, got {stride} for kernel_size {kernel_size}"
        )
    return geometry
