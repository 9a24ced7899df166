"""visionattn: hierarchical vision backbones on one small set of fused 2-D attention kernels.

Importing the package registers every backbone with timm::

    import timm, visionattn
    model = timm.create_model("gna_tiny", num_classes=1000)

:func:`list_models` lists them. :func:`fuse` puts the same kernels into models of timm's own that exist already.

Nothing is fetched and no kernel is compiled at import.
"""

__version__ = "0.1.0"

from visionattn import models
from visionattn.fusing import FuseReport, fuse, unfuse
from visionattn.listing import families, list_models

__all__ = ["FuseReport", "__version__", "families", "fuse", "list_models", "models", "unfuse"]
