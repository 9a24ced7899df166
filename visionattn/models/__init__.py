"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gcvit, gna, maxvit, nat, swin
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.maxvit import MaxVit
from visionattn.models.nat import Nat
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = ["GcVit", "Gna", "MaxVit", "Nat", "Pyramid", "Swin", "gcvit", "gna", "maxvit", "nat", "swin"]
