"""torchvision's detectors on feature pyramids of timm's registry."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from visionattn.training import network
from visionattn.training.errors import UserError, first_line
from visionattn.training.randomness import Purpose, seed_host, seed_of

from .config import DetConfig, DetectorConfig

BODY = "net.backbone.body.model."  # what the names of a pyramid's weights begin with in a detector
# Layers whose outputs are categories, by what their names begin with.
PREDICTORS = ("net.head.classification_head.cls_logits.", "net.roi_heads.box_predictor.",
              "net.roi_heads.mask_predictor.mask_fcn_logits.")  # fmt: skip


class FpnBackbone(nn.Module):
    """A pyramid's last maps through a feature pyramid network (Lin et al., arXiv 1612.03144), in float32.

    Args:
        body: a timm model with ``features_only=True``.
        levels: how many of its maps are used, from the coarsest.
        channels: of every level that comes out.
        extra: makes coarser levels: torchvision's LastLevelMaxPool or LastLevelP6P7.
        frozen: its stem and first so many stages stay as they are.

    Shapes: [B, 3, H, W] -> {"0": [B, channels, H / strides[0], W / strides[0]], "1": ..., ...}.

    Raises:
        UserError: for more frozen stages than there are, or a backbone that does not say what its stages are.
    """

    def __init__(self, body: nn.Module, levels: int, channels: int, extra: nn.Module, frozen: int = 0):
        super().__init__()
        self.body, self.out_channels = body, channels
        self.widths = body.feature_info.channels()[-levels:]
        self.strides = body.feature_info.reduction()[-levels:]
        self.fpn = FeaturePyramidNetwork(self.widths, channels, extra)
        self.frozen = _first_stages(body, frozen) if frozen else []
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> FpnBackbone:
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)[-len(self.widths) :]
        # timm's own Swin and its kin give [B, H, W, C]
        maps = [y if y.shape[1] == width else y.permute(0, 3, 1, 2) for y, width in zip(maps, self.widths)]
        levels = self.fpn(OrderedDict((str(i), y) for i, y in enumerate(maps)))
        # anchors take their precision from these maps, and pixels as bfloat16 would be off by several
        return OrderedDict((name, y.float()) for name, y in levels.items())


def _first_stages(body: nn.Module, count: int) -> list[nn.Module]:
    inner = getattr(body, "model", None)
    stages = getattr(inner, "stages", None)
    if stages is None or not hasattr(inner, "stem"):
        raise UserError(f"model.frozen_stages is {count}, but the backbone does not say what its stages are; use 0")
    if count > len(stages):
        raise UserError(f"model.frozen_stages is {count}; it must be at most {len(stages)}, the backbone's stages")
    return [inner.stem, *stages[:count]]


class Detector(nn.Module):
    """One of torchvision's detectors, with categories from 0 and the contract that training asks of a model.

    Args:
        net: torchvision's detector on an :class:`FpnBackbone`.
        background: whether its label 0 is the background.

    Shapes: a list of images [3, H, W], uint8 or float in [0, 1], of any sizes. In training, with targets, a dictionary
    of losses; in evaluation a list of dictionaries with boxes [n, 4] (x1, y1, x2, y2 in pixels of the image as it
    came), scores [n], labels [n] from 0, and masks [n, 1, H, W] in [0, 1] from Mask R-CNN.
    """

    def __init__(self, net: nn.Module, background: bool):
        super().__init__()
        self.net, self.background = net, int(background)
        heads = [net.rpn.head, net.roi_heads.box_predictor, getattr(net.roi_heads, "mask_predictor", None)] if (
            background) else [net.head]  # fmt: skip
        for head in heads:
            if head is not None:
                head.register_forward_hook(_in_float32)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images = [x if x.is_floating_point() else x.float() / 255 for x in images]
        if self.training:
            return self.net(images, [dict(x, labels=x["labels"] + self.background) for x in targets])
        return [dict(found, labels=found["labels"] - self.background) for found in self.net(images)]

    @property
    def body(self) -> nn.Module:
        """The backbone without the feature pyramid network."""
        return self.net.backbone.body

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for layer-wise learning rates: the backbone's own; all else has the full rate.

        Raises:
            UserError: for a backbone without such groups.
        """
        inner = getattr(self.body, "model", None)
        if not hasattr(inner, "group_matcher"):
            raise UserError("optim.layer_decay is set, but the backbone does not say what its layers are; use null")

        def behind_body(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return "^" + BODY.replace(".", r"\.") + pattern.removeprefix("^")
            return tuple(behind_body(x) if isinstance(x, str) else x for x in pattern)

        matcher = inner.group_matcher(coarse=coarse)
        return {
            name: [behind_body(x) for x in patterns] if isinstance(patterns, list) else behind_body(patterns)
            for name, patterns in matcher.items()
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, as the backbone says."""
        names = self.body.no_weight_decay() if hasattr(self.body, "no_weight_decay") else ()
        return {f"net.backbone.body.{name}" for name in names}


def _in_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Losses and boxes are computed in float32, whatever autocast made of what they come from."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _in_float32(module, None, value) for name, value in output.items()}
    return type(output)(_in_float32(module, None, value) for value in output)


def create_detector(config: DetConfig, classes: list[str]) -> tuple[Detector, list[str]]:
    """The network to train, fresh weights from the run's seed; and notes on layers that had to be new.

    Raises:
        UserError: for a backbone, weights or arguments that do not fit.
    """
    options = config.model
    seed_host(seed_of(Purpose.WEIGHTS, config.run.seed))
    more = {} if options.drop_path is None else dict(drop_path_rate=options.drop_path)
    given = options.backbone_checkpoint
    own = _weights_of_body(given) if given else {}
    body = network.build(
        "model.name", options.name, options.kwargs, classes, options.pretrained, None if own else given,
        features_only=True, **more)  # fmt: skip
    if own:
        _load_body(body, own, given)
    if options.grad_checkpointing:
        try:
            body.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise UserError(f"model.grad_checkpointing is true, but {options.name} does not support it") from None
    size = dict(min_size=config.data.short_side, max_size=config.data.long_side, _skip_resize=True,
                image_mean=list(config.data.mean), image_std=list(config.data.std))  # fmt: skip
    taken = set(inspect.signature(_CLASSES[options.detector]).parameters) - {"backbone", "num_classes", "kwargs"}
    if unknown := sorted(set(options.detector_kwargs) - taken):
        raise UserError(f"model.detector_kwargs: {options.detector} has no argument {unknown[0]!r}")
    try:
        detector = _MAKERS[options.detector](body, len(classes), options, {**size, **options.detector_kwargs})
    except (TypeError, ValueError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"model.detector {options.detector} cannot be built: {reason}") from None
    notes = _load(detector, options.checkpoint, classes) if options.checkpoint else []
    return detector, notes


def _last(body: nn.Module, wanted: int, name: str) -> int:
    strides = body.feature_info.reduction()
    if len(strides) < wanted or any(coarse <= fine for fine, coarse in zip(strides[-wanted:], strides[-wanted + 1 :])):
        raise UserError(f"model.name is {name!r}, whose maps have the strides {strides}; "
                        f"the last {wanted} of a backbone must get coarser")  # fmt: skip
    return wanted


def _two_stage(body: nn.Module, count: int, options: DetectorConfig, more: dict[str, Any]) -> Detector:
    levels = _last(body, 4, options.name)
    backbone = FpnBackbone(body, levels, options.fpn_channels, LastLevelMaxPool(), options.frozen_stages)
    strides = [*backbone.strides, 2 * backbone.strides[-1]]
    anchors = AnchorGenerator(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * len(strides))
    names = [str(i) for i in range(levels)]
    given = dict(num_classes=count + 1, rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(names, 7, 2))
    if options.detector == "maskrcnn":
        return Detector(MaskRCNN(backbone, mask_roi_pool=MultiScaleRoIAlign(names, 14, 2), **given, **more), True)
    return Detector(FasterRCNN(backbone, **given, **more), True)


def _dense_backbone(body: nn.Module, options: DetectorConfig) -> FpnBackbone:
    extra = LastLevelP6P7(options.fpn_channels, options.fpn_channels)
    return FpnBackbone(body, _last(body, 3, options.name), options.fpn_channels, extra, options.frozen_stages)


def _strides(backbone: FpnBackbone) -> list[int]:
    return [*backbone.strides, 2 * backbone.strides[-1], 4 * backbone.strides[-1]]


def _retinanet(body: nn.Module, count: int, options: DetectorConfig, more: dict[str, Any]) -> Detector:
    backbone = _dense_backbone(body, options)
    sizes = tuple(tuple(round(4 * s * 2 ** (i / 3)) for i in range(3)) for s in _strides(backbone))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return Detector(RetinaNet(backbone, count, anchor_generator=anchors, **{"detections_per_img": 100, **more}), False)


def _fcos(body: nn.Module, count: int, options: DetectorConfig, more: dict[str, Any]) -> Detector:
    backbone = _dense_backbone(body, options)
    sizes = tuple((s,) for s in _strides(backbone))
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    head = FCOSHead(options.fpn_channels, 1, count, options.head_convs)
    # torchvision's default threshold of 0.2 is for pictures; precision at high recall needs what lies below it
    return Detector(FCOS(backbone, count, anchor_generator=anchors, head=head, **{"score_thresh": 0.05, **more}), False)


_CLASSES = {"fcos": FCOS, "retinanet": RetinaNet, "fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN}
_MAKERS = {"fcos": _fcos, "retinanet": _retinanet, "fasterrcnn": _two_stage, "maskrcnn": _two_stage}


def _weights_of_body(path: str) -> dict[str, Tensor]:
    """The backbone's part of a detector's weights, which ends with the last map; empty for any other file."""
    weights, _ = network.read_weights(path)
    return {name.removeprefix(BODY): value for name, value in weights.items() if name.startswith(BODY)}


def _load_body(body: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    try:
        body.model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:200]
        raise UserError(f"model.backbone_checkpoint {path} is of another backbone: {reason}") from None


def _load(detector: Detector, path: str, classes: list[str]) -> list[str]:
    state_dict, trained = network.read_weights(path)
    own, anew = detector.state_dict(), []
    if trained != list(classes):
        anew = sorted(name for name in own if name.startswith(PREDICTORS))
    kept = {name: value for name, value in state_dict.items() if name not in anew}
    try:
        missing, unknown = detector.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:200]
        raise UserError(f"model.checkpoint {path} does not fit this detector: {reason}") from None
    missing = [name for name in missing if name not in anew]
    if missing or unknown:
        what = f"{len(missing)} missing and {len(unknown)} unknown weights, such as {(missing + unknown)[0]}"
        raise UserError(f"model.checkpoint {path} is of another detector: {what}")
    if not anew:
        return []
    then = "unknown categories" if trained is None else f"{len(trained)} categories ({', '.join(trained[:3])}, ...)"
    layers = sorted({name.rpartition(".")[0] for name in anew})
    return [f"model.checkpoint was trained on {then}, this run has {len(classes)} ({', '.join(classes[:3])}, ...): "
            f"these layers are drawn anew: {', '.join(layers)}"]  # fmt: skip
