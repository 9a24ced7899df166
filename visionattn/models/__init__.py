"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gna, halonet, swin
from visionattn.models.gna import Gna
from visionattn.models.halonet import HaloNet
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["Gna", "HaloNet", "Pyramid", "Swin", "gna", "halonet", "swin"]
