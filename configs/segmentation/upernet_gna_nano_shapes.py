# What `visionattn train-seg` runs when it is given nothing: generated scenes of one object, sized for a few minutes on
# two CPU cores. It needs no file and no download.
_base_ = ["_base_/upernet.py", "_base_/runtime.py"]
classes = 11
max_iters = 1100
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(name="gna_nano", drop_path=0.0),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=48, num_classes=classes),
    auxiliary_head=dict(in_channels=128, channels=48, num_classes=classes),
)
scenes = dict(type="ShapesScenes", size=48, objects=(1, 1), object_scale=(0.34, 0.46))
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="StepBatches"),
    dataset=dict(
        **scenes,
        split="train",
        length=4000,
        pipeline=[dict(type="RandomFlip", prob=0.5), dict(type="PackSegInputs")],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**scenes, split="val", length=200, test_mode=True, pipeline=[dict(type="PackSegInputs")]),
)
test_dataloader = val_dataloader
train_cfg = dict(type="StatelessLoop", max_iters=max_iters, val_interval=550)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0),
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=60, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=100))
