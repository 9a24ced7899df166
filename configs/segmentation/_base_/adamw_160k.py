# 160k iterations of AdamW at 16 images: the schedule of Swin (arXiv 2103.14030), which NAT, DiNAT, VSA, DaViT and
# BiFormer follow. None of them has layer-wise learning rates; paramwise_cfg.layer_decay gives them.
max_iters = 160000
train_cfg = dict(type="StatelessLoop", max_iters=max_iters, val_interval=16000)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=max_iters),
]
