"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import biformer, davit, gcvit, gna, halonet, maxvit, nat, swin
from visionattn.models.biformer import BiFormer
from visionattn.models.davit import DaVit
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.halonet import HaloNet
from visionattn.models.maxvit import MaxVit
from visionattn.models.nat import Nat
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["BiFormer", "DaVit", "GcVit", "Gna", "HaloNet", "MaxVit", "Nat", "Pyramid", "Swin"]
__all__ += ["biformer", "davit", "gcvit", "gna", "halonet", "maxvit", "nat", "swin"]
