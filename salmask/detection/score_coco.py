"""COCO's average precision of boxes and masks, computed by COCO's own code (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from salmask.detection.objects import Annotations, Detections, DetectionScores, Rle

if TYPE_CHECKING:
    from pycocotools.coco import COCO

Kind = Literal["box", "mask"]
# score -> its IoU, None for the mean over .5, .55, .. .95; and the size of its objects
_SCORES = {"ap": (None, "all"), "ap50": (0.5, "all"), "ap75": (0.75, "all"),
           "ap_s": (None, "small"), "ap_m": (None, "medium"), "ap_l": (None, "large")}  # fmt: skip


def score(
    annotations: Annotations, detections: Sequence[Detections], kind: Kind
) -> DetectionScores:
    """AP, AP50, AP75, and AP of small, medium and large objects, in percent.

    Small objects are below 32^2 px, large ones from 96^2 px. At most 100 detections count per
    image. The score of a size without objects is left out.

    Args:
        annotations: of the test images.
        detections: one item per image, in order.
        kind: whether boxes or masks are compared.

    Raises:
        ValueError: the numbers of images and detections differ, or masks are missing.
    """
    from pycocotools.coco import COCO  # imported here: slow to import
    from pycocotools.cocoeval import COCOeval

    if len(detections) != len(annotations.images):
        raise ValueError(f"{len(detections)} detections for {len(annotations.images)} images")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        truth.dataset = _truth(annotations, kind)
        truth.createIndex()
        evaluation = COCOeval(truth, iouType="bbox" if kind == "box" else "segm")
        evaluation.cocoDt = _results(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    overall = _means(evaluation, slice(None))
    classes = {}
    for label, name in enumerate(annotations.classes):
        objects = sum(int(((i.labels == label) & ~i.ignored).sum()) for i in annotations.images)
        classes[name] = _means(evaluation, slice(label, label + 1)) | {"objects": float(objects)}
    return DetectionScores(overall, classes)


def _means(evaluation: Any, classes: slice) -> dict[str, float]:
    """Means over IoUs, recalls and classes; the precision of classes without objects is -1."""
    settings, means = evaluation.params, {}
    for name, (iou, area) in _SCORES.items():
        ious = slice(None) if iou is None else np.flatnonzero(np.isclose(settings.iouThrs, iou))
        precision = evaluation.eval["precision"][ious]  # (T,R,K,A,M)
        precision = precision[:, :, classes, settings.areaRngLbl.index(area), -1]
        if (precision > -1).any():
            means[name] = 100 * float(precision[precision > -1].mean())
    return means


def _truth(annotations: Annotations, kind: Kind) -> dict[str, Any]:
    """The annotations as the content of a file in COCO's format."""
    objects: list[dict[str, Any]] = []
    images = []
    for image_id, image in enumerate(annotations.images):
        images.append({"id": image_id, "height": image.height, "width": image.width})
        for index in range(len(image)):
            entry = _entry(image_id, int(image.labels[index]), image.boxes[index])
            entry |= {
                "id": len(objects) + 1,  # pycocotools takes 0 for "not matched"
                "area": float(image.areas[index]),
                "iscrowd": int(image.ignored[index]),
            }
            if kind == "mask":
                entry["segmentation"] = _mask(image.masks, index)
            objects.append(entry)
    categories = [{"id": label, "name": name} for label, name in enumerate(annotations.classes)]
    return {"images": images, "annotations": objects, "categories": categories}


def _results(truth: "COCO", detections: Sequence[Detections], kind: Kind) -> "COCO":
    """The detections as pycocotools' results."""
    objects = []
    for image_id, of_image in enumerate(detections):
        for index in range(len(of_image)):
            entry = _entry(image_id, int(of_image.labels[index]), of_image.boxes[index])
            entry["score"] = float(of_image.scores[index])
            if kind == "mask":  # without its box: `loadRes` would use the area of the box
                del entry["bbox"]
                entry["segmentation"] = _mask(of_image.masks, index)
            objects.append(entry)
    if objects:
        return truth.loadRes(objects)
    empty = type(truth)()  # `loadRes` does not accept an empty list
    empty.dataset = truth.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def _entry(image_id: int, label: int, box: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = box.tolist()
    corner_and_size = [left, top, right - left, bottom - top]
    return {"image_id": image_id, "category_id": label, "bbox": corner_and_size}


def _mask(masks: tuple[Rle, ...] | None, index: int) -> Rle:
    if masks is None:
        raise ValueError("masks cannot be scored: the annotations or detections have none")
    return dict(masks[index])
