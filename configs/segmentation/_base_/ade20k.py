# ADE20K as the scene parsing challenge ships it (ADEChallengeData2016), crops of 512x512.
data_root = "data/ADEChallengeData2016"
train_dataloader = dict(
    batch_size=2,  # a GPU, of 8
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="StepBatches"),
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        split="training",
        pipeline=[
            dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        split="validation",
        test_mode=True,
        pipeline=[dict(type="Resize", scale=(2048, 512), keep_ratio=True), dict(type="PackSegInputs")],
    ),
)
test_dataloader = val_dataloader
