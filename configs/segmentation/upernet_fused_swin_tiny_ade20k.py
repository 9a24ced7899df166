# Swin (arXiv 2103.14030), from the authors' ImageNet weights.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/adamw_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="fused_swin_tiny", pretrained=True),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
