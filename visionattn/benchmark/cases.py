"""The shapes that are measured."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from .depthwise_cases import DEPTHWISE_GROUPS, DepthwiseCase


@dataclass(frozen=True)
class _OnMap:
    """What every problem has: a map of each image, heads on it and their dimension."""

    batch: int
    height: int
    width: int
    heads: int
    dim: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.batch, self.height, self.width, self.heads, self.dim

    @property
    def columns(self) -> dict[str, int]:
        """The case in the records' columns."""
        return asdict(self)


@dataclass(frozen=True)
class Case(_OnMap):
    """One neighborhood attention problem: ``[batch, height, width, heads, dim]`` inputs and a square neighborhood."""

    op: ClassVar[str] = "neighborhood"
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

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take."""
        keys = min(self.kernel, self.height) * min(self.kernel, self.width)
        rows = self.batch * self.height * self.width * self.heads
        return _floor_ms(rows, rows, keys, self.dim, self.dim, element_bytes, bytes_per_ms, flops_per_ms, backward)


@dataclass(frozen=True)
class WindowCase(_OnMap):
    """One window attention problem: ``[batch, height, width, heads, dim]`` inputs, square windows and their shift."""

    op: ClassVar[str] = "window"
    window: int
    shift: int = 0

    @property
    def name(self) -> str:
        shift = f" shift {self.shift}" if self.shift else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim} w{self.window}{shift}"

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take; every window counts as a whole one."""
        rows, keys = self.batch * self.height * self.width * self.heads, self.window**2
        return _floor_ms(rows, rows, keys, self.dim, self.dim, element_bytes, bytes_per_ms, flops_per_ms, backward)


@dataclass(frozen=True)
class HaloCase(_OnMap):
    """One halo attention problem: ``[batch, height, width, heads, dim]`` keys, blocks, halos and queries' distance."""

    op: ClassVar[str] = "halo"
    dim_v: int
    block: int
    halo: int
    stride: int = 1

    @property
    def name(self) -> str:
        dims = f"d{self.dim}" if self.dim == self.dim_v else f"d{self.dim}/{self.dim_v}"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} {dims} b{self.block} halo {self.halo}{stride}"

    @property
    def window(self) -> int:
        """Keys of a block along an axis."""
        return self.block + 2 * self.halo

    @property
    def query_map(self) -> tuple[int, int]:
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take; every window counts as a whole one, relative logits as nothing."""
        queries, keys = (self.batch * h * w * self.heads for h, w in (self.query_map, (self.height, self.width)))
        dims = self.dim, self.dim_v
        return _floor_ms(queries, keys, self.window**2, *dims, element_bytes, bytes_per_ms, flops_per_ms, backward)


@dataclass(frozen=True)
class ChannelCase(_OnMap):
    """One channel attention problem: ``heads`` groups of ``dim`` channels of a ``[batch, height, width]`` map."""

    op: ClassVar[str] = "channel"

    @property
    def name(self) -> str:
        return f"B{self.batch} {self.height}x{self.width} g{self.heads} d{self.dim}"

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take, the weights between channels taken for nothing.

        Forward moves q, k, v and the output and needs two products over all tokens; backward moves q, k, v, the
        output's gradient and three gradients and needs four.
        """
        maps, products = (11, 6) if backward else (4, 2)
        elements = self.batch * self.height * self.width * self.heads * self.dim
        return max(maps * elements * element_bytes / bytes_per_ms, products * 2 * elements * self.dim / flops_per_ms)


@dataclass(frozen=True)
class VariedCase(_OnMap):
    """One varied window attention problem; ``spread``: how far windows look away from themselves, in positions."""

    op: ClassVar[str] = "varied_window"
    window: int
    spread: int = 2

    @property
    def name(self) -> str:
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim} w{self.window} spread {self.spread}"

    floor_ms = WindowCase.floor_ms  # places count as nothing


@dataclass(frozen=True)
class LinearCase(_OnMap):
    """One linear attention problem with its local residual: ``[batch, height, width, heads, dim]`` inputs.

    ``before``: tokens in front of the map's, which then all lie in one row.
    """

    op: ClassVar[str] = "linear"
    before: int = 0

    @property
    def name(self) -> str:
        before = f" {self.before} before" if self.before else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim}{before}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        rows, columns = (1, self.before + self.height * self.width) if self.before else (self.height, self.width)
        return self.batch, rows, columns, self.heads, self.dim

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


@dataclass(frozen=True)
class RoutingCase(_OnMap):
    """One routed attention problem: ``[batch, height, width, heads, dim]`` inputs, regions an axis, routes a region."""

    op: ClassVar[str] = "routing"
    topk: int
    regions: int = 7

    @property
    def name(self) -> str:
        regions = f" of {self.regions}x{self.regions}" if self.regions != 7 else ""
        return f"B{self.batch} {self.height}x{self.width} h{self.heads} d{self.dim} top{self.topk}{regions}"

    def floor_ms(self, element_bytes: int, bytes_per_ms: float, flops_per_ms: float, backward: bool) -> float:
        """The least time the hardware could take."""
        rows = self.batch * self.height * self.width * self.heads
        seen = self.topk * self.height * self.width // self.regions**2
        return _floor_ms(rows, rows, seen, self.dim, self.dim, element_bytes, bytes_per_ms, flops_per_ms, backward)


AnyCase = Case | WindowCase | HaloCase | ChannelCase | LinearCase | RoutingCase | VariedCase | DepthwiseCase


def _floor_ms(
    queries: int,
    keys: int,
    seen: int,
    dim: int,
    dim_v: int,
    element_bytes: int,
    bytes_per_ms: float,
    flops_per_ms: float,
    backward: bool,
) -> float:
    """The larger of the times of the bytes and of the products that cannot be avoided, with ``seen`` keys a query.

    Forward reads q, k, v and writes the output once and needs two products; backward reads q, k, v, the output and its
    gradient, writes three gradients and needs five products.
    """
    elements = (queries + keys) * (dim + dim_v)
    depth = dim + dim_v
    if backward:
        elements, depth = 3 * elements, 4 * dim + 3 * dim_v
    return max(elements * element_bytes / bytes_per_ms, 2 * queries * seen * depth / flops_per_ms)


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

# The attention of timm's HaloNet-50ts at 256x256 and batch 128, of the first two stages of H1, and of H5's third.
HALONET50TS = (
    HaloCase(128, 32, 32, 4, 32, 32, 8, 3),
    HaloCase(128, 16, 16, 8, 32, 32, 8, 3),
    HaloCase(128, 8, 8, 8, 64, 64, 8, 3),
)
H1 = (
    HaloCase(128, 64, 64, 8, 8, 8, 8, 3),
    HaloCase(128, 64, 64, 8, 16, 16, 8, 3, 2),
    HaloCase(128, 32, 32, 8, 16, 16, 8, 3),
)
H5 = (HaloCase(16, 28, 28, 8, 32, 80, 14, 2),)
TINY_HALOS = (HaloCase(2, 8, 8, 2, 8, 8, 4, 1), HaloCase(1, 8, 12, 2, 16, 24, 4, 2, 2))


def _settings(shape: tuple[int, int, int, int, int], *settings: tuple[int, ...]) -> tuple[Case, ...]:
    """Cases of one shape; each setting is kernel, stride, dilation, the last two 1 where left out."""
    return tuple(Case(*shape, kernel, *rest[1:], **dict(zip(("stride",), rest))) for kernel, *rest in settings)


# Where the simulator's bounds are set against the clock. A tile costs more than its chunks: it reads queries, fills the
# pipeline and writes outputs. That is not in the model, so tiles of few chunks stand apart.
_MANY_128, _MANY_96, _MANY_64 = (8, 128, 128, 4, 64), (8, 96, 96, 8, 64), (32, 64, 64, 8, 32)
SIMULATED = (
    *_settings(_MANY_128, (13,), (16,), (24,), (24, 8), (32,), (32, 4), (32, 8), (32, 12), (32, 16), (32, 20)),
    *_settings(_MANY_128, (32, 32), (48,), (48, 8), (48, 12), (48, 48), (64,), (64, 8), (64, 16), (64, 32)),
    *_settings(_MANY_128, (96,), (96, 8), (96, 32), (32, 1, 2), (32, 8, 2), (32, 1, 4), (64, 1, 2)),
    *_settings(_MANY_96, (25,), (32,), (32, 8), (32, 16), (48,), (48, 8), (48, 24), (48, 48), (64,), (64, 8), (80, 8)),
    *_settings(_MANY_64, (13,), (16,), (31,), (32,), (32, 8), (32, 16), (32, 32), (48,), (48, 8), (48, 16), (32, 1, 2)),
)
SIMULATED_SMALL = (
    *_settings(_MANY_128, (7,), (9,), (16, 8), (16, 16)),
    *_settings(_MANY_64, (7,), (9,), (16, 8), (16, 16)),
)
SIMULATOR_GROUPS: dict[str, tuple[Case, ...]] = {
    "all": SIMULATED,
    "small": SIMULATED_SMALL,
    "tiny": _settings((1, 8, 8, 1, 8), (3,), (4, 4), (2, 2, 2)),
}


# The stages of DaViT-T at 224x224 and batch 128, and at 512x512 and batch 64.
DAVIT = (
    ChannelCase(128, 56, 56, 3, 32),
    ChannelCase(128, 28, 28, 6, 32),
    ChannelCase(128, 14, 14, 12, 32),
    ChannelCase(128, 7, 7, 24, 32),
)
DAVIT_512 = (
    ChannelCase(64, 128, 128, 3, 32),
    ChannelCase(64, 64, 64, 6, 32),
    ChannelCase(64, 32, 32, 12, 32),
    ChannelCase(64, 16, 16, 24, 32),
)
TINY_CHANNELS = (ChannelCase(2, 7, 7, 2, 8), ChannelCase(1, 12, 20, 1, 16))

# The stages of Swin-T with VSA at 224x224 and batch 128, at the start of training too, and at 512x512 and batch 64.
VSA = tuple(VariedCase(128, n, n, heads, 32, 7) for n, heads in ((56, 3), (28, 6), (14, 12), (7, 24)))
VSA_START = (VariedCase(128, 56, 56, 3, 32, 7, 0), VariedCase(128, 14, 14, 12, 32, 7, 0))
VSA_512 = tuple(VariedCase(64, n, n, heads, 32, 7) for n, heads in ((128, 3), (64, 6), (32, 12), (16, 24)))
TINY_VARIED = (VariedCase(2, 8, 8, 2, 8, 4), VariedCase(1, 7, 10, 1, 16, 4))
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
# The routed stages of BiFormer-T and -S at 224x224 and batch 128, and at 512x512 (padded) and batch 64.
BIFORMER = (
    RoutingCase(128, 56, 56, 2, 32, 1),
    RoutingCase(128, 28, 28, 4, 32, 4),
    RoutingCase(128, 14, 14, 8, 32, 16),
)
BIFORMER_512 = (
    RoutingCase(64, 133, 133, 2, 32, 1),
    RoutingCase(64, 70, 70, 4, 32, 4),
    RoutingCase(64, 35, 35, 8, 32, 16),
)
TINY_ROUTES = (RoutingCase(2, 7, 14, 2, 8, 4), RoutingCase(1, 8, 12, 2, 16, 2, 2))

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
HALO_GROUPS: dict[str, tuple[HaloCase, ...]] = {
    "all": HALONET50TS + H1 + H5,
    "classifier": HALONET50TS,
    "tiny": TINY_HALOS,
}
CHANNEL_GROUPS: dict[str, tuple[ChannelCase, ...]] = {
    "all": DAVIT + DAVIT_512,
    "classifier": DAVIT,
    "tiny": TINY_CHANNELS,
}
VARIED_GROUPS: dict[str, tuple[VariedCase, ...]] = {
    "all": VSA + VSA_512 + VSA_START,
    "classifier": VSA,
    "tiny": TINY_VARIED,
}
LINEAR_GROUPS: dict[str, tuple[LinearCase, ...]] = {
    "all": INLINE + INLINE_512,
    "classifier": INLINE,
    "tiny": TINY_LINEAR,
}
ROUTING_GROUPS: dict[str, tuple[RoutingCase, ...]] = {
    "all": BIFORMER + BIFORMER_512,
    "classifier": BIFORMER,
    "tiny": TINY_ROUTES,
}
GROUPS = {
    "neighborhood": NEIGHBORHOOD_GROUPS,
    "window": WINDOW_GROUPS,
    "halo": HALO_GROUPS,
    "channel": CHANNEL_GROUPS,
    "varied_window": VARIED_GROUPS,
    "linear": LINEAR_GROUPS,
    "routing": ROUTING_GROUPS,
    "depthwise": DEPTHWISE_GROUPS,
}
