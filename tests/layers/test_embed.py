"""The stem and the downsampler: sizes, memory layout, errors."""

import pytest
import torch

from visionattn.layers import ConvDownsample, ConvStem, PatchMerging, PatchStem


@pytest.mark.parametrize("stem", [ConvStem, PatchStem])
@pytest.mark.parametrize("stride", [4, 2, 1])
@pytest.mark.parametrize("size", [(32, 32), (33, 30), (1, 7)])
def test_stem_divides_the_image_rounding_up_and_stays_channels_last(stem, stride, size):
    y = stem(3, 16, stride)(torch.randn(2, 3, *size))
    assert y.shape == (2, 16, -(-size[0] // stride), -(-size[1] // stride))
    assert y.permute(0, 2, 3, 1).is_contiguous()


def test_stem_refuses_another_stride():
    with pytest.raises(ValueError, match=r"stem_stride must be one of \[1, 2, 4\], got 3"):
        ConvStem(3, 16, 3)


@pytest.mark.parametrize("downsample", [ConvDownsample, PatchMerging])
@pytest.mark.parametrize("size", [(14, 14), (13, 8), (1, 1)])
def test_downsampler_halves_the_map_rounding_up(downsample, size):
    y = downsample(16, 24)(torch.randn(2, *size, 16))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 24)
    assert y.is_contiguous()
