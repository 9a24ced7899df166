# There are no published weights: --checkpoint takes those of an ImageNet run (configs/imagenet/gna_tiny.yaml).
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/adamw_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="gna_tiny"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
