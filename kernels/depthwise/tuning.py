"""Tile shapes by side of the filter and dtype: a small table, never keyed by batch or map size."""


def convolve(side: int, width: int, channels: int) -> dict:
    """Rows and columns of a program's tile, its channels, and warps; wide tiles for wide maps."""
    columns = 32 if width > 16 and channels % 128 else 16 if width > 8 else 8
    return dict(TH=8 if side > 3 else 4, TW=columns, BC=1024 // columns, num_warps=4, num_stages=1)


def filters(side: int) -> dict:
    """The filters' gradient: a sum a tap in registers, so few channels a thread."""
    return dict(TH=4, TW=8, BC=32 if side > 3 else 64, num_warps=4, num_stages=1)
