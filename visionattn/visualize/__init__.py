"""Where a query looks: attention weights of any layer, read off the op that computes them, and pictures of them."""

from .record import attending_layers, find
from .weights import Call, Layer, Look

__all__ = ["Call", "Layer", "Look", "attending_layers", "find"]
