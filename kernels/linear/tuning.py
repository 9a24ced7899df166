"""Tile shapes by pass, head dimension and dtype: a small table, never keyed by batch or map size."""

SLICE = 1024  # tokens of a program at most: a fixed number, so that an image alone gets the sums it gets in a batch
WHOLE = 64  # of which the tokens of a program are a multiple, for whole tiles
BLOCK = 64  # channels of a head that are worked on at a time


def collect(bd: int, bdv: int, wide: bool) -> dict:
    """Sums over tokens; ``wide``: 32-bit inputs."""
    narrow = max(bd, bdv) <= 32
    return dict(T=64 if narrow and not wide else 32, num_warps=4, num_stages=1 if wide else 3)


def apply(bd: int, bdv: int, wide: bool, near: bool) -> dict:
    """A factor under every token; ``near``: with neighbours, whose loads are many and from the cache."""
    narrow = max(bd, bdv) <= 32
    if near:
        return dict(T=32, num_warps=4 if narrow else 8, num_stages=1)
    return dict(T=64 if narrow and not wide else 32, num_warps=4, num_stages=1 if wide else 3)


def keys(bd: int, bdv: int, wide: bool, near: bool) -> dict:
    """dk and dv; with neighbours nine sums of a tile's size are kept for the filters' gradient."""
    if near:
        return dict(T=32 if max(bd, bdv) <= 32 else 16, num_warps=4, num_stages=1)
    return dict(T=64 if max(bd, bdv) <= 32 and not wide else 32, num_warps=4, num_stages=1 if wide else 2)


def filters() -> dict:
    """The filters' gradient of wide heads."""
    return dict(T=32, num_warps=4, num_stages=1)
