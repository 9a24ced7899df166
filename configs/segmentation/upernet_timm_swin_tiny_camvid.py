# timm's Swin-T as a peer. It takes sizes that are multiples of 4 alone.
_base_ = ["_base_/camvid.py"]
model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=4)),
    backbone=dict(name="swin_tiny_patch4_window7_224", kwargs=dict(strict_img_size=False)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
