# BiFormer (arXiv 2303.08810) with 8x8 regions for crops of 512; --checkpoint takes the authors' file.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/adamw_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="biformer_small", kwargs=dict(regions=8)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
