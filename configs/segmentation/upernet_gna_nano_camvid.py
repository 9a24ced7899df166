# From random weights; --checkpoint takes those of a run on CIFAR-10 (configs/cifar10/gna_nano.yaml).
_base_ = ["_base_/camvid.py"]
model = dict(
    backbone=dict(name="gna_nano"),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
