# timm's ResNet-50 as a peer: its maps come behind batch norms and a ReLU, so they get no norm of their own.
_base_ = ["_base_/camvid.py"]
model = dict(
    backbone=dict(name="resnet50", out_norm=False, drop_path=None),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
