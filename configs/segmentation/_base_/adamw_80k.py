# 80k iterations of AdamW at 32 images: BiFormer's schedule for Semantic FPN (arXiv 2303.08810), after UniFormer.
max_iters = 80000
train_cfg = dict(type="StatelessLoop", max_iters=max_iters, val_interval=4000)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type="CosineAnnealingLR", eta_min=2e-12, by_epoch=False, begin=1000, end=max_iters),
]
