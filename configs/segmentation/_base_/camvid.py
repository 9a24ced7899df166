# CamVid's 367 training scenes of 480x360 with SegNet's 11 classes, and a recipe for training from random weights in
# minutes on one GPU. The head is half as wide as ADE20K's.
_base_ = ["upernet.py", "runtime.py"]
data_root = "data/camvid"
classes = 11
max_iters = 3000
crop = (360, 480)
model = dict(
    data_preprocessor=dict(size=crop),
    backbone=dict(drop_path=0.1),
    decode_head=dict(channels=256, num_classes=classes, loss_decode=dict(avg_non_ignore=True)),
    auxiliary_head=dict(channels=128, num_classes=classes, loss_decode=dict(avg_non_ignore=True)),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="StepBatches"),
    dataset=dict(
        type="CamVid",
        data_root=data_root,
        split="train",
        pipeline=[
            dict(type="RandomResize", scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CamVid", data_root=data_root, split="val", test_mode=True, pipeline=[dict(type="PackSegInputs")]
    ),
)
test_dataloader = val_dataloader
train_cfg = dict(type="StatelessLoop", max_iters=max_iters, val_interval=1000)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=200, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=500))
