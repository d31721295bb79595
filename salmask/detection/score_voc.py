"""PASCAL VOC's average precision of 2007, with eleven points (Everingham et al. 2010)."""

from collections.abc import Sequence

import numpy as np
import torch

from salmask.detection.objects import AnnotatedImage, Annotations, Detections, DetectionScores

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
_STEPS = 10  # recall 0, 1/10, .. 10/10
_TRUE, _FALSE, _IGNORED = 1, 0, -1  # a detection


def score(annotations: Annotations, detections: Sequence[Detections]) -> DetectionScores:
    """`ap` (mean over IoU .5, .55, .. .95), `ap50` and `ap75` in percent.

    The overall scores are means over the classes with at least one object that is not difficult.

    Args:
        annotations: of the test images.
        detections: one item per image, in order.

    Raises:
        ValueError: the numbers of images and detections differ.
    """
    classes = {}
    for label, name in enumerate(annotations.classes):
        aps, objects = _class_aps(annotations.images, detections, label)
        named = {} if aps is None else _named(aps)
        classes[name] = named | {"objects": float(objects)}
    scored = [scores for scores in classes.values() if "ap" in scores]
    names = ("ap", "ap50", "ap75") if scored else ()
    return DetectionScores({n: float(np.mean([s[n] for s in scored])) for n in names}, classes)


def eleven_point(hits: np.ndarray, objects: int) -> float:
    """The AP in [0,1] of ranked detections.

    It is the mean, over recall 0, .1, .. 1, of the highest precision at this recall or above; 0
    where no detection reaches the recall. Recalls are compared as integers, because 3 of 10 may be
    below .3 in floating point.

    Args:
        hits: (n,) bool in the order of falling score, whether a detection is true.
        objects: number of objects, at least 1.
    """
    true_positives = hits.cumsum()
    precision = true_positives / np.arange(1, len(hits) + 1)
    at_recall = [precision[_STEPS * true_positives >= step * objects]
                 for step in range(_STEPS + 1)]  # fmt: skip
    return sum(float(values.max()) for values in at_recall if len(values)) / (_STEPS + 1)


def _named(aps: np.ndarray) -> dict[str, float]:
    percent = 100 * aps
    by_iou = dict(zip(IOUS, percent, strict=True))
    return {"ap": float(percent.mean()), "ap50": float(by_iou[0.5]), "ap75": float(by_iou[0.75])}


def _class_aps(
    images: Sequence[AnnotatedImage], detections: Sequence[Detections], label: int
) -> tuple[np.ndarray | None, int]:
    """The AP of a class at each IoU (10,), or None without objects; and the number of objects."""
    from torchvision.ops import box_iou  # imported here: slow to import

    objects = 0
    parts = []  # of each image: scores (n,), and results (10,n)
    for image, of_image in zip(images, detections, strict=True):
        is_object, is_detection = image.labels == label, of_image.labels == label
        objects += int((is_object & ~image.ignored).sum())
        order = np.argsort(-of_image.scores[is_detection], kind="stable")
        boxes = torch.from_numpy(of_image.boxes[is_detection][order])
        # VOC's 1-based inclusive pixels give the same values
        ious = box_iou(boxes, torch.from_numpy(image.boxes[is_object])).numpy()
        results = np.stack([_match(ious, image.ignored[is_object], iou) for iou in IOUS])
        parts.append((of_image.scores[is_detection][order], results))
    if not objects:
        return None, 0
    order = np.argsort(-np.concatenate([scores for scores, _ in parts]), kind="stable")
    ranked = np.concatenate([results for _, results in parts], axis=1)[:, order]
    aps = [eleven_point(row[row != _IGNORED] == _TRUE, objects) for row in ranked]
    return np.array(aps), objects


def _match(ious: np.ndarray, ignored: np.ndarray, threshold: float) -> np.ndarray:
    """Results (n,) int of one image's detections of one class.

    A detection belongs to the object that it overlaps most. If a detection with a higher score
    belongs to the same object, it is false, even if it overlaps another object enough.

    Args:
        ious: (n,m) of detections, in the order of falling score, and objects.
        ignored: (m,) bool; detections of these objects are ignored.
        threshold: minimum IoU.
    """
    results = np.full(len(ious), _FALSE, dtype=np.int64)
    if not ious.size:
        return results
    matched: set[int] = set()
    for row, nearest in enumerate(ious.argmax(axis=1).tolist()):
        if ious[row, nearest] < threshold:
            continue
        if ignored[nearest]:
            results[row] = _IGNORED
        elif nearest not in matched:
            results[row] = _TRUE
            matched.add(nearest)
    return results
