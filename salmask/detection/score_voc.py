"""Average precision by PASCAL VOC's rule of 2007: eleven points (Everingham et al. 2010)."""

from collections.abc import Sequence

import numpy as np

from salmask.detection.objects import Annotations, Detections, Picture, Scores

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
_POINTS = 10  # recall 0, 1/10, .. 10/10


def score(annotations: Annotations, found: Sequence[Detections]) -> Scores:
    """`ap` (mean over IoU .5, .55, .. .95), `ap50` and `ap75` in percent, means over the classes
    that have an object which is not difficult.

    found: one for each picture, in order. Raises ValueError when there are more or fewer.
    """
    classes = {}
    for label, name in enumerate(annotations.classes):
        aps, objects = _of_class(annotations.pictures, found, label)
        named = {} if aps is None else _named(aps)
        classes[name] = named | {"objects": float(objects)}
    scored = [scores for scores in classes.values() if "ap" in scores]
    names = ("ap", "ap50", "ap75") if scored else ()
    return Scores({n: float(np.mean([s[n] for s in scored])) for n in names}, classes)


def eleven_point(hits: np.ndarray, objects: int) -> float:
    """AP in [0,1] of detections in order of falling score.

    hits (n,) bool: right or false. objects: how many there are to find, at least one. The mean,
    over recall 0, .1, .. 1, of the best precision at that recall or beyond (0 where none gets
    there). Recall is compared in whole numbers: 3 of 10 is at .3, which floats may miss.
    """
    right = hits.cumsum()
    precision = right / np.arange(1, len(hits) + 1)
    beyond = [precision[_POINTS * right >= point * objects] for point in range(_POINTS + 1)]
    return sum(float(some.max()) for some in beyond if len(some)) / (_POINTS + 1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,4), (m,4) -> (n,m), by area. VOC's own rule on 1-based inclusive pixels is the same."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def _named(aps: np.ndarray) -> dict[str, float]:
    percent = 100 * aps
    at = dict(zip(IOUS, percent, strict=True))
    return {"ap": float(percent.mean()), "ap50": float(at[0.5]), "ap75": float(at[0.75])}


def _of_class(
    pictures: Sequence[Picture], found: Sequence[Detections], label: int
) -> tuple[np.ndarray | None, int]:
    """AP at each IoU (10,), or None without objects, and the number of objects that count."""
    objects = 0
    parts = []  # scores (n,), and (10,n): 1 right, 0 false, -1 neither
    for picture, seen in zip(pictures, found, strict=True):
        there, mine = picture.labels == label, seen.labels == label
        objects += int((there & ~picture.ignored).sum())
        order = np.argsort(-seen.scores[mine], kind="stable")
        ious = box_iou(seen.boxes[mine][order], picture.boxes[there])
        verdicts = np.stack([_verdicts(ious, picture.ignored[there], least) for least in IOUS])
        parts.append((seen.scores[mine][order], verdicts))
    if not objects:
        return None, 0
    order = np.argsort(-np.concatenate([scores for scores, _ in parts]), kind="stable")
    ranked = np.concatenate([verdicts for _, verdicts in parts], axis=1)[:, order]
    return np.array([eleven_point(row[row >= 0] == 1, objects) for row in ranked]), objects


def _verdicts(ious: np.ndarray, ignored: np.ndarray, least: float) -> np.ndarray:
    """(n,m) of one image and class, the best score first -> (n,) int: 1, 0 or -1.

    A detection belongs to the object that it overlaps most, and only to that: where a better one
    was there before it is false, even if it would fit another object.
    """
    verdicts = np.zeros(len(ious), dtype=np.int64)
    if not ious.size:
        return verdicts
    taken: set[int] = set()
    for row, nearest in enumerate(ious.argmax(axis=1).tolist()):
        if ious[row, nearest] < least:
            continue
        if ignored[nearest]:
            verdicts[row] = -1
        elif nearest not in taken:
            verdicts[row] = 1
            taken.add(nearest)
    return verdicts
