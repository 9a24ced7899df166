"""The shapes on which depthwise convolutions are measured."""

from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class DepthwiseCase:
    """One depthwise convolution: a ``[batch, height, width, channels]`` map and filters of ``side`` x ``side``."""

    op: ClassVar[str] = "depthwise"
    batch: int
    height: int
    width: int
    channels: int
    side: int

    @property
    def name(self) -> str:
        return f"B{self.batch} {self.height}x{self.width} c{self.channels} k{self.side}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.height, self.width, self.channels

    @property
    def columns(self) -> dict[str, int]:
        """The case in the records' columns."""
        return asdict(self)

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take; at the rate of matrix products, which filters never reach.

        Forward reads a map and writes one; backward reads the map and the output's gradient and writes a gradient. A
        product an element and tap forward, two more backward.
        """
        elements = self.batch * self.height * self.width * self.channels
        maps, products = (5, 3) if backward else (2, 1)
        flops = products * 2 * elements * self.side**2
        return max(maps * elements * element_bytes / bytes_per_ms, flops / flops_per_ms)


# The position encodings of Swin-T with VSA, the local terms of BiFormer-S and the position encodings of DaViT-T at
# 224x224 and batch 128, and their first ones at 512x512 (BiFormer's padded) and batch 64.
DEPTHWISE = (
    *(DepthwiseCase(128, 56 // 2**i, 56 // 2**i, 96 * 2**i, 7) for i in range(4)),
    *(DepthwiseCase(128, 56 // 2**i, 56 // 2**i, 64 * 2**i, 5) for i in range(4)),
    *(DepthwiseCase(128, 56 // 2**i, 56 // 2**i, 96 * 2**i, 3) for i in range(4)),
)
DEPTHWISE_512 = (
    DepthwiseCase(64, 128, 128, 96, 7),
    DepthwiseCase(64, 133, 133, 64, 5),
    DepthwiseCase(64, 128, 128, 96, 3),
)
TINY_DEPTHWISE = (DepthwiseCase(2, 7, 7, 8, 3), DepthwiseCase(1, 5, 6, 16, 7))
DEPTHWISE_GROUPS: dict[str, tuple[DepthwiseCase, ...]] = {
    "all": DEPTHWISE + DEPTHWISE_512,
    "classifier": DEPTHWISE,
    "tiny": TINY_DEPTHWISE,
}
