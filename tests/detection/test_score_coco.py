import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salmask.detection import score_coco as coco
from tests.helpers.detection_by_loops import (
    CLASSES,
    SIDE,
    annotations,
    coco_ap,
    detections,
    picture,
    scenes,
)

HERE, THERE = (0, 0, 4, 4), (6, 6, 10, 10)
NAMES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
WIDE = 200


def ellipse(box, side=SIDE):
    y, x = np.mgrid[:side, :side] + 0.5
    left, top, right, bottom = box
    away = ((2 * x - left - right) / (right - left)) ** 2 + (
        (2 * y - top - bottom) / (bottom - top)
    ) ** 2
    return rle.encode(np.asfortranarray(away <= 1, dtype=np.uint8))


def test_all_found_is_100_and_only_sizes_that_occur_are_scored():
    scene = annotations(picture([HERE, THERE], [0, 0]), rule="coco", classes=("ant",))
    found = coco.score(scene, [detections([HERE, THERE], [0.9, 0.8], [0, 0])], "box")
    assert found.overall == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100, "ap_s": 100})
    assert found.classes["ant"] == pytest.approx(found.overall | {"objects": 2})


def test_a_duplicate_is_false_and_a_crowd_neither():
    seen = detections([HERE, HERE, THERE], [0.9, 0.8, 0.7], [0, 0, 0])
    both = annotations(picture([HERE, THERE], [0, 0]), classes=("ant",))
    # precision 1 at recall 0, .01, .. .5 (51 points), 2/3 at the 50 beyond
    assert coco.score(both, [seen], "box").overall["ap50"] == pytest.approx(
        100 * (51 + 50 * 2 / 3) / 101
    )
    crowd = annotations(picture([HERE, THERE], [0, 0], [True, False]), classes=("ant",))
    found = coco.score(crowd, [seen], "box")
    assert found.overall["ap"] == pytest.approx(100)
    assert found.classes["ant"]["objects"] == 1


def test_no_detections_score_0_and_no_objects_nothing():
    nothing = detections([], [], [], ())
    one = annotations(picture([HERE], [1], masks=(ellipse(HERE),)))
    for kind in ("box", "mask"):
        found = coco.score(one, [nothing], kind)
        assert found.overall == {"ap": 0, "ap50": 0, "ap75": 0, "ap_s": 0}
        assert found.classes["ant"] == {"objects": 0}
    empty = annotations(picture([], []))
    assert coco.score(empty, [detections([HERE], [0.9], [0])], "box").overall == {}
    assert coco.score(empty, [nothing], "box").overall == {}


def test_what_is_missing_is_told():
    scene = annotations(picture([HERE], [0]))
    with pytest.raises(ValueError, match="0 detections for 1 pictures"):
        coco.score(scene, [], "box")
    with pytest.raises(ValueError, match="there are none"):
        coco.score(scene, [detections([HERE], [0.9], [0])], "mask")


@given(scenes("coco"))
def test_boxes_equal_the_loops(scene):
    pictures, found = scene
    scores = coco.score(pictures, found, "box")
    for label, name in enumerate(CLASSES):
        aps = [coco_ap(pictures, found, label, percent) for percent in range(50, 100, 5)]
        if aps[0] is None:
            assert "ap" not in scores.classes[name]
        else:
            assert scores.classes[name]["ap"] == pytest.approx(np.mean(aps))
            assert scores.classes[name]["ap50"] == pytest.approx(aps[0])
            assert scores.classes[name]["ap75"] == pytest.approx(aps[5])


def crowded_scene():
    """Forty images with objects of all sizes, crowds, and detections near and far from them."""
    generator = np.random.default_rng(0)
    pictures, found = [], []
    for _ in range(40):
        corners = generator.uniform(0, 90, (5, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(8, 110, (5, 2))], axis=1)
        labels = generator.integers(0, 3, 5)
        ignored = generator.random(5) < 0.15
        seen = np.concatenate([boxes + generator.normal(0, 4, boxes.shape), boxes[:2] / 2])
        seen[:, 2:] = np.maximum(seen[:, 2:], seen[:, :2] + 2)
        guessed = np.where(generator.random(7) < 0.8, np.r_[labels, labels[:2]], 0)
        masks, others = [tuple(ellipse(b, WIDE) for b in some) for some in (boxes, seen)]
        there = picture(boxes, labels, ignored, masks)
        pictures.append(replace(there, areas=1.5 * there.areas))  # the annotations' word counts
        found.append(detections(seen, generator.random(7).round(1), guessed, others))
    return annotations(*pictures, rule="coco"), found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_boxes_and_masks_equal_pycocotools_from_files(kind, tmp_path):
    """The usual way: an annotation file and a result file, with ids of another kind."""
    scene, found = crowded_scene()
    objects, results = [], []
    for number, (there, seen) in enumerate(zip(scene.pictures, found, strict=True)):
        for i in range(len(there)):
            objects.append(
                {"id": 1000 - len(objects), "image_id": 7 * number + 3, "area": there.areas[i],
                 "category_id": 10 * int(there.labels[i]) + 5, "iscrowd": int(there.ignored[i]),
                 "bbox": [*there.boxes[i][:2], *(there.boxes[i][2:] - there.boxes[i][:2])],
                 "segmentation": as_text(there.masks[i])}
            )  # fmt: skip
        for i in range(len(seen)):
            result = {"image_id": 7 * number + 3, "category_id": 10 * int(seen.labels[i]) + 5}
            size = seen.boxes[i][2:] - seen.boxes[i][:2]
            what = (
                {"bbox": [*seen.boxes[i][:2], *size]}
                if kind == "box"
                else {"segmentation": as_text(seen.masks[i])}
            )
            results.append(result | what | {"score": seen.scores[i]})
    images = [{"id": 7 * n + 3, "height": WIDE, "width": WIDE} for n in range(40)]
    categories = [{"id": 10 * i + 5, "name": name} for i, name in enumerate(CLASSES)]
    told = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(told))
    (tmp_path / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        reference = COCOeval(
            truth, truth.loadRes(str(tmp_path / "found.json")), "bbox" if kind == "box" else "segm"
        )
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    scores = coco.score(scene, found, kind)
    wanted = dict(zip(NAMES, 100 * reference.stats[:6], strict=True))
    assert scores.overall == pytest.approx(wanted, abs=1e-9)
    assert all(0 < value < 100 for value in wanted.values())
    mean = np.mean([scores.classes[name]["ap"] for name in CLASSES])
    assert scores.overall["ap"] == pytest.approx(mean)


def as_text(mask):
    return {"size": mask["size"], "counts": mask["counts"].decode()}
