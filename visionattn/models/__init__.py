"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import davit, gcvit, gna, halonet, maxvit, nat, swin, vsa
from visionattn.models.davit import DaVit
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.halonet import HaloNet
from visionattn.models.maxvit import MaxVit
from visionattn.models.nat import Nat
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin
from visionattn.models.vsa import VsaSwin

__all__ = ["DaVit", "GcVit", "Gna", "HaloNet", "MaxVit", "Nat", "Pyramid", "Swin", "VsaSwin"]
__all__ += ["davit", "gcvit", "gna", "halonet", "maxvit", "nat", "swin", "vsa"]
