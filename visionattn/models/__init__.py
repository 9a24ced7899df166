"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gna, swin
from visionattn.models.gna import Gna
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["Gna", "Pyramid", "Swin", "gna", "swin"]
