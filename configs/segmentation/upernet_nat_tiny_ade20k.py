# NAT (arXiv 2204.07143), from the authors' ImageNet weights.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/adamw_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="nat_tiny", pretrained=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
