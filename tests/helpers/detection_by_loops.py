"""Average precision by loops, written from the published rules only, and random scenes."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from salmask.detection.objects import AnnotatedImage, Annotations, Detections

CLASSES = ("ant", "bee", "cow")
SIDE = 12  # px, of an image


def image(boxes, labels, ignored=None, masks=None) -> AnnotatedImage:
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    flags = np.zeros(len(boxes), bool) if ignored is None else np.array(ignored, bool)
    labels = np.array(labels, dtype=np.int64)
    return AnnotatedImage(
        Path("x.png"), SIDE, SIDE, boxes, labels, flags, sizes.prod(axis=1), masks
    )


def detections(boxes, scores, labels, masks=None) -> Detections:
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    scores, labels = np.array(scores, dtype=np.float64), np.array(labels, dtype=np.int64)
    return Detections(boxes, scores, labels, masks)


def annotations(*images: AnnotatedImage, rule="voc", classes=CLASSES) -> Annotations:
    return Annotations(classes, tuple(images), rule)


def iou(a, b) -> Fraction:
    """The IoU of two boxes with integer coordinates, by counting pixels."""
    pixels = [
        {(x, y) for x in range(int(c[0]), int(c[2])) for y in range(int(c[1]), int(c[3]))}
        for c in (a, b)
    ]
    return Fraction(len(pixels[0] & pixels[1]), len(pixels[0] | pixels[1]))


def ranked(per_image: list[Detections], label: int) -> list:
    """(image, box) of one class by falling score; equal scores in order of appearance."""
    rows = [
        (-float(score), number, place, box)
        for number, of_image in enumerate(per_image)
        for place, (box, score, own_label) in enumerate(
            zip(of_image.boxes, of_image.scores, of_image.labels, strict=True)
        )
        if own_label == label
    ]
    return [(row[1], row[3]) for row in sorted(rows, key=lambda row: row[:3])]


def truths(scene: Annotations, label: int) -> list[list]:
    """[image, box, ignored, whether it is matched] of one class."""
    return [
        [number, box, bool(ignored), False]
        for number, image in enumerate(scene.images)
        for box, own_label, ignored in zip(image.boxes, image.labels, image.ignored, strict=True)
        if own_label == label
    ]


def voc_ap(
    scene: Annotations, per_image: list[Detections], label: int, percent: int
) -> float | None:
    """AP in percent at one IoU, by VOC's rule of 2007; None without an object."""
    objects = truths(scene, label)
    count = sum(not o[2] for o in objects)
    if not count:
        return None
    curve, right, false = [], 0, 0
    for number, box in ranked(per_image, label):
        best, nearest = Fraction(-1), None
        for candidate in objects:
            if candidate[0] == number and iou(box, candidate[1]) > best:
                best, nearest = iou(box, candidate[1]), candidate
        if nearest is not None and best >= Fraction(percent, 100):
            if nearest[2]:
                continue
            right, false = (right, false + 1) if nearest[3] else (right + 1, false)
            nearest[3] = True
        else:
            false += 1
        curve.append((Fraction(right, count), Fraction(right, right + false)))
    total = Fraction(0)
    for tenth in range(11):
        total += max((p for r, p in curve if r >= Fraction(tenth, 10)), default=Fraction(0))
    return float(100 * total / 11)


def coco_ap(
    scene: Annotations, per_image: list[Detections], label: int, percent: int
) -> float | None:
    """AP in percent at one IoU by COCO's rule, for scenes without crowds: 101 points, and a
    detection matches the best object that is not matched yet (the last of equals)."""
    objects = truths(scene, label)
    if not objects:
        return None
    curve, right, false = [], 0, 0
    for number, box in ranked(per_image, label):
        best, nearest = Fraction(percent, 100), None
        for candidate in objects:
            if candidate[0] == number and not candidate[3] and iou(box, candidate[1]) >= best:
                best, nearest = iou(box, candidate[1]), candidate
        if nearest is None:
            false += 1
        else:
            right, nearest[3] = right + 1, True
        curve.append((Fraction(right, len(objects)), Fraction(right, right + false)))
    total = sum(
        max((p for r, p in curve if r >= Fraction(point, 100)), default=Fraction(0))
        for point in range(101)
    )
    return float(100 * total / 101)


_boxes = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@st.composite
def scenes(draw, rule="voc"):
    """Random images of three classes with objects, and detections with partly equal scores."""
    images, per_image = [], []
    for _ in range(draw(st.integers(1, 3))):
        boxes = draw(st.lists(_boxes, max_size=4))
        n = len(boxes)
        labels = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
        flags = draw(st.lists(st.booleans(), min_size=n, max_size=n)) if rule == "voc" else None
        images.append(image(boxes, labels, flags))
        detected = draw(st.lists(st.sampled_from(boxes) | _boxes if boxes else _boxes, max_size=6))
        m = len(detected)
        scores = draw(st.lists(st.sampled_from([0.2, 0.5, 0.5, 0.9]), min_size=m, max_size=m))
        per_image.append(
            detections(detected, scores, draw(st.lists(st.integers(0, 2), min_size=m, max_size=m)))
        )
    return annotations(*images, rule=rule), per_image
