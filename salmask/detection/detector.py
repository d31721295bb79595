"""Faster R-CNN and Mask R-CNN with a C4 trunk around one of our encoders (Ren et al. 2015, He et
al. 2017), made of torchvision's parts.

As in MoCo's protocol (He et al. 2020, Sec. 4.2), the stem to layer3 compute the features, layer4
and an additional norm are the box head, and all weights are trained, including batch norms.

Processes that share a batch pad their images to one size, and weight their losses so that the mean
over processes is the loss of the whole batch. In half precision only convolutions run in half
precision; boxes are computed in float32.

This module imports torchvision, which is slow to import: import it where a detector is built.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.resnet import ResNet
from torchvision.ops import RoIAlign

from salmask.detection.architecture import ANCHORS, Norm, check_trunk
from salmask.detection.losses import anchor_losses, region_losses
from salmask.detection.sampling import subsample
from salmask.distributed import all_reduce_max, mean_weight
from salmask.encoders.norms import group_norms, own_norms
from salmask.encoders.on_disk import Encoder

Targets = list[dict[str, Tensor]]
Losses = dict[str, Tensor]

RATIOS = (0.5, 1.0, 2.0)  # of the sides of anchors
_POOLED = 14  # cells a side of a region at the input of layer4
_MASK_CHANNELS = 256
_SAMPLED_ANCHORS = 256  # anchors of an image in the loss; at most half of them on objects
_POSITIVE_SHARE = 0.25  # maximum share of objects among the regions in the loss
_STRIDES = {"imagenet": 16, "small2": 8, "small": 4}  # of layer3, by the encoder's stem


class Detector(nn.Module):
    """Images (3,H,W) float32 in [0,1] of any sizes -> losses in training, detections otherwise.

    In training, `forward(images, targets)` returns losses by name; their mean over processes is the
    loss of the batch. A target holds boxes (n,4) float32 in px, labels (n,) int64 from 1 on, a key
    () int64 that determines its random numbers, and masks (n,H,W) uint8 for a mask head.

    In evaluation, `forward(images)` returns for each image boxes, labels, scores and, with a mask
    head, masks (n,1,14,14) with probabilities over the box.

    Args:
        encoder: a residual network. The detector works on a copy of it.
        classes: number of classes, without the background.
        masks: whether there is a mask head.
        freeze_encoder: whether the stem to layer3 keep their weights.
        norm: `sync` normalises with the statistics of the whole batch of all processes, `local`
            with those of each process's part, `frozen` with the encoder's, which do not change.
        anchors: sides in px.
        regions: number of regions of an image that the heads are trained on.
        seed: of the weights of new layers.

    Raises:
        UserError: the encoder is not a residual network.
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
        super().__init__()
        check_trunk(encoder.config)
        network = copy.deepcopy(encoder.network).requires_grad_(True)
        assert isinstance(network, ResNet)
        self.spec = encoder.spec
        self.stride = _STRIDES[encoder.config.stem]
        self.freeze_encoder, self.norm = freeze_encoder, norm
        stem = (network.conv1, network.bn1, network.relu, network.maxpool)
        self.trunk = nn.Sequential(*stem, network.layer1, network.layer2, network.layer3)
        first = network.layer4[0]
        channels, head_channels = first.conv1.in_channels, first.downsample[0].out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rpn = _KeyedRPN(channels, anchors)
            self.heads = _C4Heads(
                network.layer4, head_channels, classes + 1, self.stride, regions, masks
            )
        (own_norms if norm == "local" else group_norms)(self)
        _set_trainable(self)

    def train(self, mode: bool = True) -> "Detector":
        """As `nn.Module.train`, but frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.trunk.eval()
        if self.norm == "frozen":
            for layer in _encoder_norms(self):
                layer.eval()
        return self

    def preprocess(self, images: list[Tensor]) -> ImageList:
        """Normalises and filters each image as the encoder's input, at its own size, and pads all
        with zeros to one size that is a multiple of the trunk's stride. In training the size is the
        same in all processes."""
        normalised = [self.spec.prepared(image[None])[0] for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in normalised]
        # torchvision spaces anchors by image size // map size: other sizes would move them
        height, width = (
            -(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True)
        )
        if self.training:
            height, width = all_reduce_max(height), all_reduce_max(width)
        padded = [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in normalised]
        batch = torch.stack(padded).contiguous(memory_format=torch.channels_last)
        return ImageList(batch, sizes)

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Losses | Targets:
        batch = self.preprocess(images)
        features = {"0": self.trunk(batch.tensors).float()}
        proposals, losses = self.rpn(batch, features, targets)
        detections, head_losses = self.heads(features, proposals, batch.image_sizes, targets)
        return losses | head_losses if self.training else detections


class _C4Heads(RoIHeads):
    """torchvision's heads, with a box head whose features the mask head shares (C4)."""

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
            positive_fraction=_POSITIVE_SHARE,
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
        """Whether there is a mask head; torchvision's check of the targets calls this."""
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, Losses]:
        if self.training:
            assert targets is not None
            self.keys = [target["key"] for target in targets]
            proposals, matches, labels, regression_targets = self.select_training_samples(
                proposals, targets
            )
        regions = self._region_features(features, proposals)
        scores, deltas = (out.float() for out in self.box_predictor(regions.mean(dim=(2, 3))))
        if not self.training:
            return self._detections(features, scores, deltas, proposals, image_shapes), {}
        assert targets is not None
        class_loss, box_loss = region_losses(scores, deltas, labels, regression_targets)
        weight = mean_weight(scores.new_tensor(len(scores)))
        losses = {"class": weight * class_loss, "box": weight * box_loss}
        if self.has_mask():
            positive = [of_image > 0 for of_image in labels]  # only objects have masks
            losses["mask"] = mean_weight(torch.cat(positive).sum()) * maskrcnn_loss(
                self.mask_predictor(regions[torch.cat(positive)]).float(),
                [boxes[chosen] for boxes, chosen in zip(proposals, positive, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[chosen] for match, chosen in zip(matches, positive, strict=True)],
            )
        return [], losses

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """The places (n,) of the sampled regions of each image, drawn with the image's key."""
        kept = [
            subsample(of_image, key, "regions", self.regions, _POSITIVE_SHARE)
            for of_image, key in zip(labels, self.keys, strict=True)
        ]
        return [torch.where(of_image >= 0)[0] for of_image in kept]

    def _detections(
        self,
        features: dict[str, Tensor],
        scores: Tensor,
        deltas: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Targets:
        outputs = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        names = ("boxes", "scores", "labels")
        detections = [dict(zip(names, one, strict=True)) for one in zip(*outputs, strict=True)]
        if self.has_mask():
            boxes = [one["boxes"] for one in detections]
            logits = self.mask_predictor(self._region_features(features, boxes))
            masks = maskrcnn_inference(logits.float(), [one["labels"] for one in detections])
            detections = [one | {"masks": m} for one, m in zip(detections, masks, strict=True)]
        return detections

    def _region_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """(n,C,7,7) of the boxes of all images, after RoIAlign, layer4 and the additional norm."""
        return self.box_head(self.box_roi_pool(features["0"], boxes))


class _KeyedRPN(RegionProposalNetwork):
    """torchvision's proposals, with losses on anchors that are drawn with each image's key."""

    def __init__(self, channels: int, anchors: tuple[int, ...]) -> None:
        super().__init__(
            AnchorGenerator((anchors,), (RATIOS,)),
            _Float32RPNHead(channels, len(anchors) * len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=_SAMPLED_ANCHORS,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 12000, "testing": 6000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        sampled = [
            subsample(of_image, target["key"], "anchors", _SAMPLED_ANCHORS, 0.5)
            for of_image, target in zip(labels, targets, strict=True)
        ]
        return sampled, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        object_loss, box_loss = anchor_losses(
            objectness, pred_bbox_deltas, labels, regression_targets
        )
        weight = mean_weight((torch.cat(labels) >= 0).sum())
        return weight * object_loss, weight * box_loss


class _Float32RPNHead(RPNHead):
    """torchvision's head with float32 outputs: boxes in bfloat16 would be rounded to 4 px."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


def _encoder_norms(detector: Detector) -> list[nn.Module]:
    """The batch norms of the encoder: all but the additional one of the box head."""
    parts = (detector.trunk, detector.heads.box_head[0])
    return [layer for part in parts for layer in part.modules()
            if isinstance(layer, _BatchNorm)]  # fmt: skip


def _set_trainable(detector: Detector) -> None:
    if detector.freeze_encoder:
        detector.trunk.requires_grad_(False)
    if detector.norm == "frozen":
        for layer in _encoder_norms(detector):
            layer.requires_grad_(False)
