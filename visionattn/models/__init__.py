"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gna
from visionattn.models.gna import Gna
from visionattn.models.pyramid import Pyramid

__all__ = ["Gna", "Pyramid", "gna"]
