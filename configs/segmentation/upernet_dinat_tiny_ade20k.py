# DiNAT (arXiv 2209.15001), from the authors' ImageNet weights, with the dilations of their segmentors.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/adamw_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(
        name="dinat_tiny",
        pretrained=True,
        kwargs=dict(dilations=[[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4], [1, 2, 1, 2, 1]]),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
