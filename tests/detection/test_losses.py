"""The losses of regions and anchors, against numbers that were worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from salmask.detection.detector import _KeyedRPN
from salmask.detection.losses import anchor_losses, region_losses


def test_the_losses_of_regions_by_hand() -> None:
    """Two images, three regions, two classes: one region is background, two have an object."""
    scores = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0], [0.0, 0.0, math.log(6)]])
    labels = [torch.tensor([0, 1]), torch.tensor([2])]
    deltas = torch.zeros(3, 3, 4)
    deltas[0] = 99.0  # background has no box
    deltas[1, 1] = torch.tensor([0.05, 0.0, 0.0, 0.0])
    deltas[1, 2] = 99.0  # of the other class
    deltas[2, 2] = torch.tensor([1.0, -2.0, 0.5, 0.0])
    targets = [
        torch.tensor([[7.0, 7.0, 7.0, 7.0], [0.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 0.0, 0.0, 0.25]]),
    ]
    classes, boxes = region_losses(scores, deltas.flatten(1), labels, targets)
    # softmax: 1/3, 2/4, 6/8
    assert classes.item() == pytest.approx((math.log(3) + math.log(2) + math.log(4 / 3)) / 3)
    # |0.05| + (1 + 2 + 0.5 + 0.25), over three regions; smooth L1 with beta 1/9 would have 0.01125
    # for 0.05 and one eighteenth less for each of the four others
    assert boxes.item() == pytest.approx(3.8 / 3)


def test_the_losses_of_anchors_by_hand() -> None:
    objectness = torch.tensor([[0.0], [math.log(3)], [50.0], [-math.log(3)]])
    labels = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])]
    deltas = torch.tensor([[0.1, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, -0.3, 2.0]])
    targets = [torch.zeros(2, 4), torch.zeros(2, 4)]
    objects, boxes = anchor_losses(objectness, deltas, labels, targets)
    # -log of 1/2, of 1 - 3/4, of 1/4; the third anchor is not in the sample
    assert objects.item() == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert boxes.item() == pytest.approx((0.1 + 0.3 + 2.0) / 3)


def test_without_objects_the_loss_of_boxes_is_zero_and_has_a_gradient() -> None:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, requires_grad=True)

    deltas, more = zeros(2, 8), zeros(2, 4)
    _, boxes = region_losses(zeros(2, 2), deltas, [torch.zeros(2).long()], [torch.ones(2, 4)])
    _, anchors = anchor_losses(zeros(2, 1), more, [torch.zeros(2)], [torch.ones(2, 4)])
    (boxes + anchors).backward()
    assert boxes == anchors == 0 and deltas.grad is not None and more.grad is not None


def test_the_detectors_proposals_use_these_losses() -> None:
    torch.manual_seed(0)
    objectness, deltas, targets = torch.randn(6, 1), torch.randn(6, 4), torch.randn(6, 4)
    labels = [torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0, 0.0])]
    own = _KeyedRPN(4, (16,)).compute_loss(objectness, deltas, labels, [targets])
    assert own == anchor_losses(objectness, deltas, labels, [targets])
