import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salmask.detection import rle
from salmask.detection import score_coco as coco
from tests.helpers.detection_by_loops import (
    CLASSES,
    SIDE,
    annotations,
    coco_ap,
    detections,
    image,
    scenes,
)

FIRST, SECOND = (0, 0, 4, 4), (6, 6, 10, 10)
NAMES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
WIDE = 200


def ellipse(box, side=SIDE):
    y, x = np.mgrid[:side, :side] + 0.5
    left, top, right, bottom = box
    distance = ((2 * x - left - right) / (right - left)) ** 2 + (
        (2 * y - top - bottom) / (bottom - top)
    ) ** 2
    (mask,) = rle.encode((distance <= 1)[None])
    return mask


def test_all_objects_are_100_and_only_sizes_that_occur_are_scored():
    scene = annotations(image([FIRST, SECOND], [0, 0]), rule="coco", classes=("ant",))
    scores = coco.score(scene, [detections([FIRST, SECOND], [0.9, 0.8], [0, 0])], "box")
    assert scores.overall == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100, "ap_s": 100})
    assert scores.classes["ant"] == pytest.approx(scores.overall | {"objects": 2})


def test_a_duplicate_is_false_and_a_crowd_is_not_scored():
    detected = detections([FIRST, FIRST, SECOND], [0.9, 0.8, 0.7], [0, 0, 0])
    both = annotations(image([FIRST, SECOND], [0, 0]), classes=("ant",))
    # precision 1 at recall 0, .01, .. .5 (51 points), 2/3 at the other 50
    assert coco.score(both, [detected], "box").overall["ap50"] == pytest.approx(
        100 * (51 + 50 * 2 / 3) / 101
    )
    crowd = annotations(image([FIRST, SECOND], [0, 0], [True, False]), classes=("ant",))
    scores = coco.score(crowd, [detected], "box")
    assert scores.overall["ap"] == pytest.approx(100)
    assert scores.classes["ant"]["objects"] == 1


def test_no_detections_score_0_and_no_objects_nothing():
    nothing = detections([], [], [], ())
    one = annotations(image([FIRST], [1], masks=(ellipse(FIRST),)))
    for kind in ("box", "mask"):
        scores = coco.score(one, [nothing], kind)
        assert scores.overall == {"ap": 0, "ap50": 0, "ap75": 0, "ap_s": 0}
        assert scores.classes["ant"] == {"objects": 0}
    empty = annotations(image([], []))
    assert coco.score(empty, [detections([FIRST], [0.9], [0])], "box").overall == {}
    assert coco.score(empty, [nothing], "box").overall == {}


def test_missing_detections_and_masks_are_refused():
    scene = annotations(image([FIRST], [0]))
    with pytest.raises(ValueError, match="0 detections for 1 images"):
        coco.score(scene, [], "box")
    with pytest.raises(ValueError, match="masks cannot be scored"):
        coco.score(scene, [detections([FIRST], [0.9], [0])], "mask")


@given(scenes("coco"))
def test_boxes_equal_the_loops(scene):
    annotated, per_image = scene
    scores = coco.score(annotated, per_image, "box")
    for label, name in enumerate(CLASSES):
        aps = [coco_ap(annotated, per_image, label, percent) for percent in range(50, 100, 5)]
        if aps[0] is None:
            assert "ap" not in scores.classes[name]
        else:
            assert scores.classes[name]["ap"] == pytest.approx(np.mean(aps))
            assert scores.classes[name]["ap50"] == pytest.approx(aps[0])
            assert scores.classes[name]["ap75"] == pytest.approx(aps[5])


def crowded_scene():
    """Forty images with objects of all sizes, crowds, and detections near and far from objects."""
    generator = np.random.default_rng(0)
    images, per_image = [], []
    for _ in range(40):
        corners = generator.uniform(0, 90, (5, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(8, 110, (5, 2))], axis=1)
        labels = generator.integers(0, 3, 5)
        ignored = generator.random(5) < 0.15
        detected = np.concatenate([boxes + generator.normal(0, 4, boxes.shape), boxes[:2] / 2])
        detected[:, 2:] = np.maximum(detected[:, 2:], detected[:, :2] + 2)
        detected_labels = np.where(generator.random(7) < 0.8, np.r_[labels, labels[:2]], 0)
        masks, detected_masks = [
            tuple(ellipse(b, WIDE) for b in each) for each in (boxes, detected)
        ]
        annotated = image(boxes, labels, ignored, masks)
        # areas of annotations differ from areas of boxes
        images.append(replace(annotated, areas=1.5 * annotated.areas))
        scores = generator.random(7).round(1)
        per_image.append(detections(detected, scores, detected_labels, detected_masks))
    return annotations(*images, rule="coco"), per_image


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_boxes_and_masks_equal_pycocotools_from_files(kind, tmp_path):
    """pycocotools reads a file of annotations and a file of results, with other ids."""
    scene, per_image = crowded_scene()
    objects, results = [], []
    for number, (truth, detected) in enumerate(zip(scene.images, per_image, strict=True)):
        for i in range(len(truth)):
            objects.append(
                {"id": 1000 - len(objects), "image_id": 7 * number + 3, "area": truth.areas[i],
                 "category_id": 10 * int(truth.labels[i]) + 5, "iscrowd": int(truth.ignored[i]),
                 "bbox": [*truth.boxes[i][:2], *(truth.boxes[i][2:] - truth.boxes[i][:2])],
                 "segmentation": as_text(truth.masks[i])}
            )  # fmt: skip
        for i in range(len(detected)):
            result = {"image_id": 7 * number + 3, "category_id": 10 * int(detected.labels[i]) + 5}
            size = detected.boxes[i][2:] - detected.boxes[i][:2]
            what = (
                {"bbox": [*detected.boxes[i][:2], *size]}
                if kind == "box"
                else {"segmentation": as_text(detected.masks[i])}
            )
            results.append(result | what | {"score": detected.scores[i]})
    images = [{"id": 7 * n + 3, "height": WIDE, "width": WIDE} for n in range(40)]
    categories = [{"id": 10 * i + 5, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        reference_truth = COCO(str(tmp_path / "truth.json"))
        reference = COCOeval(
            reference_truth,
            reference_truth.loadRes(str(tmp_path / "results.json")),
            "bbox" if kind == "box" else "segm",
        )
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    scores = coco.score(scene, per_image, kind)
    expected = dict(zip(NAMES, 100 * reference.stats[:6], strict=True))
    assert scores.overall == pytest.approx(expected, abs=1e-9)
    assert all(0 < value < 100 for value in expected.values())
    mean = np.mean([scores.classes[name]["ap"] for name in CLASSES])
    assert scores.overall["ap"] == pytest.approx(mean)


def as_text(mask):
    return {"size": mask["size"], "counts": mask["counts"].decode()}
