"""The shapes that are measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One neighborhood attention problem: ``[batch, height, width, heads, dim]`` inputs and a square neighborhood."""

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

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take: the larger of the bytes and the products that cannot be avoided.

        Forward reads q, k, v and writes the output once (4 maps) and needs two products; backward reads q, k, v, the
        output and its gradient, writes three gradients (8 maps) and needs five products.
        """
        batch, height, width, heads, dim = self.shape
        maps, products = (12, 7) if backward else (4, 2)
        elements = batch * height * width * heads * dim
        window = min(self.kernel, height) * min(self.kernel, width)
        return max(maps * elements * element_bytes / bytes_per_ms, products * 2 * elements * window / flops_per_ms)


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

GROUPS: dict[str, tuple[Case, ...]] = {
    "all": CLASSIFIER + DETECTION + WIDE,
    "classifier": CLASSIFIER,
    "detection": DETECTION,
    "wide": WIDE,
    "gna": tuple(case for case in WIDE if case.stride > 1),
    "tiny": TINY,
}
