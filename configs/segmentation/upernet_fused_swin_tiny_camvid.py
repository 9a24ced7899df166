# From random weights; --checkpoint takes those of a backbone.
_base_ = ["_base_/camvid.py"]
model = dict(
    backbone=dict(name="fused_swin_tiny"),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
