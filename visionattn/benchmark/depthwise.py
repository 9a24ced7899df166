"""Depthwise convolution, and torch's on the same memory: channels last, as maps lie between layers."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from visionattn.kernels import depthwise_conv

from .beside_timm import Side
from .depthwise_cases import DepthwiseCase


def sides(case: DepthwiseCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op and torch's convolution, with a bias, everything in ``dtype``.

    Switches cuDNN's search for the fastest algorithm on: the peer at its best.
    """
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    x, grad = draw(*case.shape).requires_grad_(), draw(*case.shape)
    weight = (draw(case.channels, 1, case.side, case.side) / case.side).requires_grad_()
    bias = draw(case.channels).requires_grad_()

    def ours() -> Tensor:
        return depthwise_conv(x, weight, bias)

    def torchs() -> Tensor:
        out = conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=case.side // 2, groups=case.channels)
        return out.permute(0, 2, 3, 1)

    return {name: Side(call, [x, weight, bias], grad) for name, call in (("ours", ours), ("conv2d", torchs))}
