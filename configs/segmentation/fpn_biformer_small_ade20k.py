# BiFormer (arXiv 2303.08810) with 8x8 regions for crops of 512; --checkpoint takes the authors' file.
_base_ = ["_base_/semantic_fpn.py", "_base_/ade20k.py", "_base_/adamw_80k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="biformer_small", kwargs=dict(regions=8)),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(batch_size=4)  # a GPU, of 8
