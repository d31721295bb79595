"""COCO's average precision of boxes and masks, computed by COCO's own code (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salmask.detection.objects import Annotations, Detections, Rle, Scores

Kind = Literal["box", "mask"]
_NAMES = {"ap": (None, "all"), "ap50": (0.5, "all"), "ap75": (0.75, "all"),
          "ap_s": (None, "small"), "ap_m": (None, "medium"), "ap_l": (None, "large")}  # fmt: skip


def score(annotations: Annotations, found: Sequence[Detections], kind: Kind) -> Scores:
    """AP, AP50, AP75 and AP of small (below 32^2 px), medium and large (from 96^2) objects, in
    percent; at most 100 detections an image. A size that no object has is left out.

    found: one for each picture, in order. Raises ValueError when there are more or fewer.
    """
    if len(found) != len(annotations.pictures):
        raise ValueError(f"{len(found)} detections for {len(annotations.pictures)} pictures")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth = COCO()
        truth.dataset = _truth(annotations, kind)
        truth.createIndex()
        evaluation = COCOeval(truth, iouType="bbox" if kind == "box" else "segm")
        evaluation.cocoDt = _found(truth, annotations, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    overall = _means(evaluation, slice(None))
    classes = {}
    for index, name in enumerate(annotations.classes):
        objects = sum(int(((p.labels == index) & ~p.ignored).sum()) for p in annotations.pictures)
        classes[name] = _means(evaluation, slice(index, index + 1)) | {"objects": float(objects)}
    return Scores(overall, classes)


def _means(evaluation: Any, classes: slice) -> dict[str, float]:
    """Means over IoUs, recalls and the classes with objects (the others' precision is -1)."""
    settings, found = evaluation.params, {}
    for name, (iou, area) in _NAMES.items():
        ious = slice(None) if iou is None else np.flatnonzero(np.isclose(settings.iouThrs, iou))
        precision = evaluation.eval["precision"][ious]  # (T,R,K,A,M)
        precision = precision[:, :, classes, settings.areaRngLbl.index(area), -1]
        if (precision > -1).any():
            found[name] = 100 * float(precision[precision > -1].mean())
    return found


def _truth(annotations: Annotations, kind: Kind) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    images = []
    for number, picture in enumerate(annotations.pictures):
        images.append({"id": number, "height": picture.height, "width": picture.width})
        for index in range(len(picture)):
            described = _described(number, int(picture.labels[index]), picture.boxes[index])
            described |= {
                "id": len(objects) + 1,  # 0 would pass for "not matched" there
                "area": float(picture.areas[index]),
                "iscrowd": int(picture.ignored[index]),
            }
            if kind == "mask":
                described["segmentation"] = _mask(picture.masks, index)
            objects.append(described)
    categories = [{"id": index, "name": name} for index, name in enumerate(annotations.classes)]
    return {"images": images, "annotations": objects, "categories": categories}


def _found(truth: COCO, annotations: Annotations, found: Sequence[Detections], kind: Kind) -> COCO:
    """The detections as COCO's own; its `loadRes` would not take an empty list."""
    objects = []
    for number, seen in enumerate(found):
        for index in range(len(seen)):
            described = _described(number, int(seen.labels[index]), seen.boxes[index])
            described["score"] = float(seen.scores[index])
            if kind == "mask":  # with a box beside it, `loadRes` takes the box's area for its size
                del described["bbox"]
                described["segmentation"] = _mask(seen.masks, index)
            objects.append(described)
    if objects:
        return truth.loadRes(objects)
    empty = COCO()
    empty.dataset = truth.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def _described(image: int, label: int, box: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = box.tolist()
    corner_and_size = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": label, "bbox": corner_and_size}


def _mask(masks: tuple[Rle, ...] | None, index: int) -> Rle:
    if masks is None:
        raise ValueError("masks are to be scored, and there are none")
    return dict(masks[index])
