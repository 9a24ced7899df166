"""What ``visionattn train-seg`` runs when it is given nothing: gna_nano with UPerNet on generated scenes of `shapes`.

A config of mmengine. It needs no file and no download, and is sized for a few minutes on two CPU cores.
"""

_norm = dict(type="BN", requires_grad=True)
_channels = 48
classes = 11

model = dict(
    type="Segmentor",
    precision="fp32",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(48, 48),
    ),
    backbone=dict(
        type="VisionAttnBackbone",
        name="gna_nano",
        checkpoint=None,
        pretrained=False,
        drop_path=0.0,
        frozen_stages=-1,
        compile=False,
        kwargs=dict(),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[32, 64, 128, 256],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=_channels,
        dropout_ratio=0.1,
        num_classes=classes,
        norm_cfg=_norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=128,
        in_index=2,
        channels=_channels,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=classes,
        norm_cfg=_norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="StepBatches"),
    dataset=dict(
        type="ShapesScenes",
        split="train",
        length=4000,
        size=48,
        objects=(1, 1),
        object_scale=(0.34, 0.46),
        pipeline=[
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShapesScenes",
        split="val",
        length=200,
        size=48,
        objects=(1, 1),
        object_scale=(0.34, 0.46),
        test_mode=True,
        pipeline=[dict(type="PackSegInputs")],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SceneIoU", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

max_iters = 1100
train_cfg = dict(type="StatelessLoop", max_iters=max_iters, val_interval=550)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
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
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=100, max_keep_ckpts=2, save_best="mIoU"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
default_scope = "mmseg"
log_level = "INFO"
randomness = dict(seed=0)
resume = False
load_from = None
