"""Faster R-CNN and Mask R-CNN with a C4 trunk (Ren et al. 2015, He et al. 2017), of torchvision's
parts around an encoder of ours.

As in MoCo's protocol (He et al. 2020): stem to layer3 make the features, layer4 and a further norm
are the box head, everything learns, batch norm too. The boxes' loss is torchvision's, smooth L1
with beta 1/9, where detectron2 has L1.

Processes that share a batch pad it to one size, count its statistics and weigh its losses as one
process would. In half precision only the convolutions are: boxes keep their digits.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.resnet import ResNet
from torchvision.ops import RoIAlign

from salmask.detection.sampling import everything, subsample
from salmask.distributed import all_reduce_max, mean_weight
from salmask.encoders.norms import group_norms, own_norms
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError

Norm = Literal["sync", "local", "frozen"]
Targets = list[dict[str, Tensor]]
Losses = dict[str, Tensor]

ANCHORS = (32, 64, 128, 256, 512)  # px
RATIOS = (0.5, 1.0, 2.0)
_POOLED = 14  # cells a side that RoIAlign hands to layer4
_MASK_CHANNELS = 256
_ANCHORS_DRAWN = 256  # of each image, half of them on objects at most
_POSITIVE = 0.25  # of an image's regions, at most
_STRIDES = {"imagenet": 16, "small2": 8, "small": 4}  # of layer3, by the encoder's stem


def trunk_of(network: nn.Module, arch: str) -> ResNet:
    """The network. Raises UserError for one that no detector can be built around."""
    if not isinstance(network, ResNet):
        raise UserError(
            f"encoder.arch: {arch} has no layer1 to layer4, which detection is built around; it "
            "takes residual networks (resnet50, resnext50_32x4d, ...)"
        )
    return network


class Detector(nn.Module):
    """Images (3,H,W) float32 in [0,1] of any sizes -> losses in training, else detections.

    Training: forward(images, targets), targets with boxes (n,4) float32 in px, labels (n,) int64
    from 1 on, a key () int64 that its random numbers come from, and masks (n,H,W) uint8 where it
    has a mask head; gives losses by name, of which the mean over processes counts. Evaluation:
    forward(images) gives for each image boxes, labels, scores and, with a mask head, masks
    (n,1,14,14), probabilities over the box.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        masks: bool = False,
        freeze_encoder: bool = False,
        norm: Norm = "sync",
        anchors: tuple[int, ...] = ANCHORS,
        regions: int = 512,
        seed: int = 0,
    ) -> None:
        """classes: without the background. masks: whether there is a mask head. freeze_encoder:
        stem to layer3 stay as they are. norm: `sync` learns on the whole batch's statistics, of
        all processes; `local` on those of each process's part; `frozen` keeps the encoder's as they
        are. anchors: sides in px. regions: of an image that
        the heads learn on. seed: of the new layers' weights. Raises UserError for an encoder that
        is no ResNet."""
        super().__init__()
        network = trunk_of(encoder.network, encoder.config.arch)
        network = copy.deepcopy(network).requires_grad_(True)  # the encoder stays as it is
        self.spec = encoder.spec
        self.stride = _STRIDES[encoder.config.stem]
        self.freeze_encoder, self.norm = freeze_encoder, norm
        stem = (network.conv1, network.bn1, network.relu, network.maxpool)
        self.trunk = nn.Sequential(*stem, network.layer1, network.layer2, network.layer3)
        first = network.layer4[0]
        wide, wider = first.conv1.in_channels, first.downsample[0].out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rpn = _Proposals(wide, anchors)
            self.heads = _Heads(network.layer4, wider, classes + 1, self.stride, regions, masks)
        (own_norms if norm == "local" else group_norms)(self)
        _set_trainable(self)

    def train(self, mode: bool = True) -> "Detector":
        """As ever, but norms that are frozen keep their statistics."""
        super().train(mode)
        if self.freeze_encoder:
            self.trunk.eval()
        if self.norm == "frozen":
            for layer in _encoder_norms(self):
                layer.eval()
        return self

    def prepared(self, images: list[Tensor]) -> ImageList:
        """Normalised and filtered as the encoder's input is, each at its own size, then padded
        with zeros to one size that the trunk's stride divides; in training one for all processes.
        """
        shown = [self.spec.prepared(image[None])[0] for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in shown]
        # anchors lie at whole strides: a map that ends in part of a cell would move them
        tall, wide = (
            -(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True)
        )
        if self.training:
            tall, wide = all_reduce_max(tall), all_reduce_max(wide)
        padded = [F.pad(i, (0, wide - i.shape[2], 0, tall - i.shape[1])) for i in shown]
        batch = torch.stack(padded).contiguous(memory_format=torch.channels_last)
        return ImageList(batch, sizes)

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Losses | Targets:
        batch = self.prepared(images)
        features = {"0": self.trunk(batch.tensors).float()}
        proposals, losses = self.rpn(batch, features, targets)
        found, more = self.heads(features, proposals, batch.image_sizes, targets)
        return losses | more if self.training else found


class _Heads(RoIHeads):
    """torchvision's, with a box head whose features the mask head shares (C4)."""

    def __init__(
        self,
        layer4: nn.Module,
        channels: int,
        classes: int,
        stride: int,
        regions: int,
        masks: bool,
    ) -> None:
        predictor = FastRCNNPredictor(channels, classes)
        nn.init.normal_(predictor.cls_score.weight, std=0.01)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
        for layer in (predictor.cls_score, predictor.bbox_pred):
            nn.init.zeros_(layer.bias)
        super().__init__(
            RoIAlign(_POOLED, 1 / stride, sampling_ratio=0, aligned=True),
            nn.Sequential(layer4, nn.BatchNorm2d(channels)),
            predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions,
            positive_fraction=_POSITIVE,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.regions = regions
        if masks:
            self.mask_predictor = MaskRCNNPredictor(channels, _MASK_CHANNELS, classes)
            nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)
            for layer in (self.mask_predictor.conv5_mask, self.mask_predictor.mask_fcn_logits):
                nn.init.zeros_(layer.bias)

    def has_mask(self) -> bool:
        """For torchvision's own checks of the targets."""
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, Losses]:
        if self.training:
            proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        regions = self._regions(features, proposals)
        scores, moves = (out.float() for out in self.box_predictor(regions.mean(dim=(2, 3))))
        if not self.training:
            return self._detections(features, scores, moves, proposals, image_shapes), {}
        assert targets is not None
        of_class, of_box = fastrcnn_loss(scores, moves, labels, wanted)
        part = mean_weight(scores.new_tensor(len(scores)))
        losses = {"class": part * of_class, "box": part * of_box}
        if self.has_mask():
            shown = [some > 0 for some in labels]  # masks are learned where there is an object
            losses["mask"] = mean_weight(torch.cat(shown).sum()) * maskrcnn_loss(
                self.mask_predictor(regions[torch.cat(shown)]).float(),
                [some[chosen] for some, chosen in zip(proposals, shown, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [some[chosen] for some, chosen in zip(matched, shown, strict=True)],
            )
        return [], losses

    def select_training_samples(
        self, proposals: list[Tensor], targets: Targets | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], tuple[Tensor, ...]]:
        """As torchvision's, drawn by each image's key: regions, the objects they match, their
        labels, and where these objects lie."""
        assert targets is not None
        boxes = [target["boxes"] for target in targets]
        proposals = self.add_gt_proposals(proposals, boxes)
        names = [target["labels"] for target in targets]
        matched, labels = self.assign_targets_to_proposals(proposals, boxes, names)
        kept = [
            torch.where(subsample(some, target["key"], "regions", self.regions, _POSITIVE) >= 0)[0]
            for some, target in zip(labels, targets, strict=True)
        ]
        proposals, matched, labels = (
            [some[places] for some, places in zip(each, kept, strict=True)]
            for each in (proposals, matched, labels)
        )
        there = [some if len(some) else some.new_zeros(1, 4) for some in boxes]
        wanted = [some[places] for some, places in zip(there, matched, strict=True)]
        return proposals, matched, labels, self.box_coder.encode(wanted, proposals)

    def _detections(
        self,
        features: dict[str, Tensor],
        scores: Tensor,
        moves: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Targets:
        kept = self.postprocess_detections(scores, moves, proposals, image_shapes)
        names = ("boxes", "scores", "labels")
        found = [dict(zip(names, one, strict=True)) for one in zip(*kept, strict=True)]
        if self.has_mask():
            logits = self.mask_predictor(self._regions(features, [one["boxes"] for one in found]))
            masks = maskrcnn_inference(logits.float(), [one["labels"] for one in found])
            found = [one | {"masks": mask} for one, mask in zip(found, masks, strict=True)]
        return found

    def _regions(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """(n,C,7,7) of all images' boxes: RoIAlign, layer4 and the further norm."""
        return self.box_head(self.box_roi_pool(features["0"], boxes))


class _Proposals(RegionProposalNetwork):
    """torchvision's, whose losses are taken on anchors drawn by each image's key."""

    def __init__(self, channels: int, anchors: tuple[int, ...]) -> None:
        super().__init__(
            AnchorGenerator((anchors,), (RATIOS,)),
            _Floats(channels, len(anchors) * len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=_ANCHORS_DRAWN,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 12000, "testing": 6000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.fg_bg_sampler = everything

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        drawn = [
            subsample(some, target["key"], "anchors", _ANCHORS_DRAWN, 0.5)
            for some, target in zip(labels, targets, strict=True)
        ]
        return drawn, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        of_objects, of_boxes = super().compute_loss(
            objectness, pred_bbox_deltas, labels, regression_targets
        )
        part = mean_weight((torch.cat(labels) >= 0).sum())
        return part * of_objects, part * of_boxes


class _Floats(RPNHead):
    """Boxes are made of what it finds: in half precision they would lie 4 px apart."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objects, moves = super().forward(x)
        return [some.float() for some in objects], [some.float() for some in moves]


def _encoder_norms(detector: Detector) -> list[nn.Module]:
    """Those that came with the encoder: all but the box head's further one, which is new."""
    parts = (detector.trunk, detector.heads.box_head[0])
    return [layer for part in parts for layer in part.modules()
            if isinstance(layer, _BatchNorm)]  # fmt: skip


def _set_trainable(detector: Detector) -> None:
    if detector.freeze_encoder:
        detector.trunk.requires_grad_(False)
    if detector.norm == "frozen":
        for layer in _encoder_norms(detector):
            layer.requires_grad_(False)
