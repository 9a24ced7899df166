"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gna, maxvit, swin
from visionattn.models.gna import Gna
from visionattn.models.maxvit import MaxVit
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["Gna", "MaxVit", "Pyramid", "Swin", "gna", "maxvit", "swin"]
