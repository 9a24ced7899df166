"""How much faster than full attention can a neighborhood attention be? An analytical model, and a tool that asks it.

``model`` counts the products that tiles of queries and chunks of keys make (``axes``: along one axis), ``ours`` knows
the tiles of this package's own kernel, ``search`` finds strides and tiles for a sparsity, ``picture`` draws, ``cli`` is
the door: ``visionattn simulate``. Maps have one to three axes; nothing here needs a GPU::

    from visionattn.simulate import Problem, Tiling, simulate

    simulate(Problem.make((30, 48, 80), (18, 24, 24), (16, 8, 8)), Tiling((4, 8, 8), (2, 8, 8), static=True)).speedup
"""

from .model import Problem, Result, Tiling, simulate

__all__ = ["Problem", "Result", "Tiling", "simulate"]
