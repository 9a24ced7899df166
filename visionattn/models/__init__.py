"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import (
    biformer,
    davit,
    gcvit,
    gna,
    halonet,
    inline_cswin,
    inline_deit,
    inline_pvt,
    inline_swin,
    maxvit,
    nat,
    swin,
    vsa,
)
from visionattn.models.biformer import BiFormer
from visionattn.models.davit import DaVit
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.halonet import HaloNet
from visionattn.models.inline_cswin import InlineCswin
from visionattn.models.inline_deit import InlineDeit
from visionattn.models.inline_pvt import InlinePvt
from visionattn.models.inline_swin import InlineSwin
from visionattn.models.maxvit import MaxVit
from visionattn.models.nat import Nat
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin
from visionattn.models.vsa import VsaSwin

__all__ = ["BiFormer", "DaVit", "GcVit", "Gna", "HaloNet", "InlineCswin", "InlineDeit", "InlinePvt", "InlineSwin"]
__all__ += ["MaxVit", "Nat", "Pyramid", "Swin", "VsaSwin"]
__all__ += ["biformer", "davit", "gcvit", "gna", "halonet", "inline_cswin", "inline_deit", "inline_pvt", "inline_swin"]
__all__ += ["maxvit", "nat", "swin", "vsa"]
