# GNA; --checkpoint takes the weights of an ImageNet run (configs/imagenet/gna_tiny.yaml).
_base_ = ["_base_/semantic_fpn.py", "_base_/ade20k.py", "_base_/adamw_80k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(name="gna_tiny"),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(batch_size=4)  # a GPU, of 8
