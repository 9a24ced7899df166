"""The shapes that are measured."""

from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Case:
    """One neighborhood attention problem: ``[batch, height, width, heads, dim]`` inputs and a square neighborhood."""

    op: ClassVar[str] = "neighborhood"
    batch: int
    height: int
    width: int
    heads: int
    dim: int
    kernel: int
    dilation: int = 1
    stride: int = 1

    @property
    def name(self) -> str:
        parts = [f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim} k{self.kernel}"]
        if self.dilation > 1:
            parts.append(f"dilation {self.dilation}")
        if self.stride > 1:
            parts.append(f"stride {self.stride}")
        return " ".join(parts)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.batch, self.height, self.width, self.heads, self.dim

    @property
    def columns(self) -> dict[str, int]:
        """The case in the records' columns."""
        return asdict(self)

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take."""
        window = min(self.kernel, self.height) * min(self.kernel, self.width)
        return _floor_ms(self.shape, window, element_bytes, bytes_per_ms, flops_per_ms, backward)


@dataclass(frozen=True)
class WindowCase:
    """One window attention problem: ``[batch, height, width, heads, dim]`` inputs, square windows and their shift."""

    op: ClassVar[str] = "window"
    batch: int
    height: int
    width: int
    heads: int
    dim: int
    window: int
    shift: int = 0

    @property
    def name(self) -> str:
        shift = f" shift {self.shift}" if self.shift else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim} w{self.window}{shift}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.batch, self.height, self.width, self.heads, self.dim

    @property
    def columns(self) -> dict[str, int]:
        """The case in the records' columns."""
        return asdict(self)

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take; every window counts as a whole one."""
        return _floor_ms(self.shape, self.window**2, element_bytes, bytes_per_ms, flops_per_ms, backward)


@dataclass(frozen=True)
class LinearCase:
    """One linear attention problem with its local residual: ``[batch, height, width, heads, dim]`` inputs.

    ``before``: tokens in front of the map's, which then all lie in one row.
    """

    op: ClassVar[str] = "linear"
    batch: int
    height: int
    width: int
    heads: int
    dim: int
    before: int = 0

    @property
    def name(self) -> str:
        before = f" {self.before} before" if self.before else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim}{before}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        rows, columns = (1, self.before + self.height * self.width) if self.before else (self.height, self.width)
        return self.batch, rows, columns, self.heads, self.dim

    @property
    def columns(self) -> dict[str, int]:
        """The case in the records' columns."""
        return asdict(self)

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take.

        Forward reads q, k, v and writes the output (4 maps); backward reads q, k, v and the output's gradient and
        writes three gradients (7 maps). Two products with a matrix of dim x dim and nine taps a channel; backward has
        twice that.
        """
        batch, rows, columns, heads, dim = self.shape
        elements = batch * rows * columns * heads * dim
        maps, rounds = (11, 3) if backward else (4, 1)
        products = rounds * elements * (4 * dim + 18)
        return max(maps * elements * element_bytes / bytes_per_ms, products / flops_per_ms)


def _floor_ms(
    shape: tuple[int, int, int, int, int],
    keys: int,
    element_bytes: int,
    bytes_per_ms: float,
    flops_per_ms: float,
    backward: bool,
) -> float:
    """The larger of the times of the bytes and of the products that cannot be avoided, with ``keys`` a query.

    Forward reads q, k, v and writes the output once (4 maps) and needs two products; backward reads q, k, v, the
    output and its gradient, writes three gradients (8 maps) and needs five products.
    """
    batch, height, width, heads, dim = shape
    maps, products = (12, 7) if backward else (4, 2)
    elements = batch * height * width * heads * dim
    return max(maps * elements * element_bytes / bytes_per_ms, products * 2 * elements * keys / flops_per_ms)


# The stages of a NAT/DiNAT-like classifier at 224x224 and batch 128.
CLASSIFIER = (
    Case(128, 56, 56, 2, 32, 7),
    Case(128, 28, 28, 4, 32, 7),
    Case(128, 28, 28, 4, 32, 7, dilation=4),
    Case(128, 14, 14, 8, 32, 7),
    Case(128, 14, 14, 8, 32, 7, dilation=2),
    Case(128, 7, 7, 16, 32, 7),
)
DETECTION = (Case(4, 200, 304, 4, 32, 7),)
WIDE = (
    Case(8, 128, 128, 8, 64, 13),
    Case(2, 128, 128, 16, 64, 32),
    Case(2, 128, 128, 16, 64, 32, stride=16),
    Case(2, 128, 128, 16, 64, 32, stride=32),
    Case(1, 256, 256, 24, 128, 80),
    Case(1, 256, 256, 24, 128, 80, stride=16),
)
# For a CPU, where the point is that the whole path runs.
TINY = (
    Case(2, 7, 7, 2, 8, 7),
    Case(1, 12, 20, 2, 16, 3, dilation=2),
    Case(1, 12, 12, 2, 8, 4, stride=2),
)

# The stages of Swin-T at 224x224 and batch 128, and a large map.
SWIN = (
    WindowCase(128, 56, 56, 3, 32, 7),
    WindowCase(128, 56, 56, 3, 32, 7, 3),
    WindowCase(128, 28, 28, 6, 32, 7, 3),
    WindowCase(128, 14, 14, 12, 32, 7, 3),
    WindowCase(128, 7, 7, 24, 32, 7),
)
LARGE = (WindowCase(8, 224, 224, 4, 32, 8, 4),)
TINY_WINDOWS = (WindowCase(2, 7, 7, 2, 8, 7), WindowCase(1, 8, 12, 2, 16, 4, 2))

# The stages with linear attention of the tiny InLine models at 224x224, and of InLine-Swin-T at 512x512.
INLINE = (
    LinearCase(128, 56, 56, 3, 32),
    LinearCase(128, 28, 28, 6, 32),
    LinearCase(128, 14, 14, 12, 32),
    LinearCase(128, 56, 56, 2, 32),
    LinearCase(128, 28, 28, 4, 32),
    LinearCase(128, 14, 14, 10, 32),
    LinearCase(128, 7, 7, 16, 32),
    LinearCase(128, 14, 14, 6, 32, 1),
)
INLINE_512 = (
    LinearCase(64, 128, 128, 3, 32),
    LinearCase(64, 64, 64, 6, 32),
    LinearCase(64, 32, 32, 12, 32),
)
TINY_LINEAR = (LinearCase(2, 7, 7, 2, 8), LinearCase(1, 5, 6, 2, 16, 1))

NEIGHBORHOOD_GROUPS: dict[str, tuple[Case, ...]] = {
    "all": CLASSIFIER + DETECTION + WIDE,
    "classifier": CLASSIFIER,
    "detection": DETECTION,
    "wide": WIDE,
    "gna": tuple(case for case in WIDE if case.stride > 1),
    "tiny": TINY,
}
WINDOW_GROUPS: dict[str, tuple[WindowCase, ...]] = {
    "all": SWIN + LARGE,
    "classifier": SWIN,
    "tiny": TINY_WINDOWS,
}
LINEAR_GROUPS: dict[str, tuple[LinearCase, ...]] = {
    "all": INLINE + INLINE_512,
    "classifier": INLINE,
    "tiny": TINY_LINEAR,
}
GROUPS = {"neighborhood": NEIGHBORHOOD_GROUPS, "window": WINDOW_GROUPS, "linear": LINEAR_GROUPS}
