"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import biformer, gcvit, gna, halonet, maxvit, swin
from visionattn.models.biformer import BiFormer
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.halonet import HaloNet
from visionattn.models.maxvit import MaxVit
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["BiFormer", "GcVit", "Gna", "HaloNet", "MaxVit", "Pyramid", "Swin"]
__all__ += ["biformer", "gcvit", "gna", "halonet", "maxvit", "swin"]
