"""Launch options by head dimension and dtype: a small table, never keyed by batch or map size."""

CHUNK = 128  # windows of an image that the last pass looks at at a time


def forward_options(size: int, head_dim: int, wide: bool) -> dict:
    """``size``: the tile's positions; ``head_dim``: the larger of q's and v's, padded; ``wide``: 32-bit inputs."""
    if wide or head_dim > 64:
        return dict(num_warps=max(4, size // 8), num_stages=1)
    return dict(num_warps=4, num_stages=2)


def backward_options(size: int, head_dim: int, wide: bool) -> dict:
    """The pass that leaves the samples' gradients."""
    if wide or head_dim > 32:
        return dict(num_warps=max(4, size // 8), num_stages=1)
    return dict(num_warps=4, num_stages=1)


def collect_options(size: int, head_dim: int, wide: bool) -> dict:
    """The pass that collects them; its inner loop ends where data say, which no pipeline can foresee."""
    return dict(num_warps=8 if wide or head_dim > 64 else 4, num_stages=1)
