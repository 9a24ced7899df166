"""The backbones. Importing this package registers every variant with timm."""

from visionattn.models import gcvit, gna, inline_cswin, inline_deit, inline_pvt, inline_swin, maxvit, swin
from visionattn.models.gcvit import GcVit
from visionattn.models.gna import Gna
from visionattn.models.inline_cswin import InlineCswin
from visionattn.models.inline_deit import InlineDeit
from visionattn.models.inline_pvt import InlinePvt
from visionattn.models.inline_swin import InlineSwin
from visionattn.models.maxvit import MaxVit
from visionattn.models.pyramid import Pyramid
from visionattn.models.swin import Swin

__all__ = [
    "GcVit",
    "Gna",
    "InlineCswin",
    "InlineDeit",
    "InlinePvt",
    "InlineSwin",
    "MaxVit",
    "Pyramid",
    "Swin",
    "gcvit",
    "gna",
    "inline_cswin",
    "inline_deit",
    "inline_pvt",
    "inline_swin",
    "maxvit",
    "swin",
]
