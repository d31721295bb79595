"""The losses of regions and anchors, with detectron2's defaults.

The loss of boxes is L1 for both: SMOOTH_L1_BETA is 0.0 for RPN and ROI_BOX_HEAD, with C4 and with
FPN. torchvision uses smooth L1 with beta 1/9.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def region_losses(
    scores: Tensor, deltas: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The losses of the box head: mean cross entropy (), and L1 of the boxes ().

    L1 is the sum over the regions with an object and the four coordinates, divided by the number of
    all regions.

    Args:
        scores: (n,C+1) of all regions; class 0 is the background.
        deltas: (n,4*(C+1)), predicted coordinates for each class.
        labels: for each image (r,) int64.
        targets: for each image (r,4), coordinates to predict.
    """
    classes = torch.cat(list(labels))
    positive = torch.where(classes > 0)[0]
    predicted = deltas.view(len(deltas), -1, 4)[positive, classes[positive]]
    boxes = F.l1_loss(predicted, torch.cat(list(targets))[positive], reduction="sum")
    return F.cross_entropy(scores, classes), boxes / len(classes)


def anchor_losses(
    objectness: Tensor, deltas: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The losses of the proposals: mean binary cross entropy (), and L1 of the boxes ().

    L1 is the sum over the anchors on objects and the four coordinates, divided by the number of
    sampled anchors.

    Args:
        objectness: (n,1) logits of all anchors.
        deltas: (n,4), predicted coordinates.
        labels: for each image (a,) float32: 1 on objects, 0 on background, -1 outside the sample.
        targets: for each image (a,4), coordinates to predict.
    """
    kinds = torch.cat(list(labels))
    sampled, positive = kinds >= 0, kinds >= 1
    objects = F.binary_cross_entropy_with_logits(objectness[:, 0][sampled], kinds[sampled])
    boxes = F.l1_loss(deltas[positive], torch.cat(list(targets))[positive], reduction="sum")
    return objects, boxes / sampled.sum()
