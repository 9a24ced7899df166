# From random weights; --checkpoint takes those of a backbone.
_base_ = ["_base_/camvid.py"]
model = dict(
    backbone=dict(name="gna_tiny"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
