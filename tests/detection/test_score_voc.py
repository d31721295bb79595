import numpy as np
import pytest
from hypothesis import given

from salmask.detection import score_voc
from tests.helpers.detection_by_loops import (
    CLASSES,
    annotations,
    detections,
    image,
    scenes,
    voc_ap,
)

FIRST, SECOND, ELSEWHERE = (0, 0, 4, 4), (6, 6, 10, 10), (0, 6, 4, 10)


def score(images, per_image, classes=("ant",)):
    return score_voc.score(annotations(*images, classes=classes), per_image)


def test_all_objects_and_nothing_else_is_100():
    scores = score(
        [image([FIRST, SECOND], [0, 0])], [detections([FIRST, SECOND], [0.9, 0.8], [0, 0])]
    )
    assert scores.overall == pytest.approx({"ap": 100.0, "ap50": 100.0, "ap75": 100.0})
    assert scores.classes["ant"]["objects"] == 2


def test_a_second_detection_of_an_object_is_false():
    # right, false (again FIRST), right: precision 1 up to recall 1/2 (6 points), then 2/3 (5)
    detected = detections([FIRST, FIRST, SECOND], [0.9, 0.8, 0.7], [0, 0, 0])
    scores = score([image([FIRST, SECOND], [0, 0])], [detected])
    assert scores.overall["ap50"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_a_difficult_object_counts_neither_as_missed_nor_as_false():
    scene = [image([FIRST, SECOND], [0, 0], [True, False])]
    without = score(scene, [detections([SECOND], [0.5], [0])])
    twice = score(scene, [detections([FIRST, FIRST, SECOND], [0.9, 0.8, 0.5], [0, 0, 0])])
    assert without.overall == twice.overall == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    assert twice.classes["ant"]["objects"] == 1


def test_a_class_with_difficult_objects_only_is_not_in_the_mean():
    scene = [image([FIRST, SECOND], [0, 1], [True, False])]
    scores = score(scene, [detections([FIRST, SECOND], [0.9, 0.9], [0, 1])], ("ant", "bee"))
    assert scores.overall["ap"] == pytest.approx(100)
    assert scores.classes["ant"] == {"objects": 0}


def test_a_class_without_detections_has_0_and_is_in_the_mean():
    scores = score(
        [image([FIRST, SECOND], [0, 1])], [detections([FIRST], [1], [0])], ("ant", "bee")
    )
    assert scores.classes["bee"]["ap"] == 0
    assert scores.overall["ap"] == pytest.approx(50)


def test_a_detection_of_another_class_is_false():
    scores = score([image([FIRST], [0])], [detections([FIRST], [0.9], [1])], ("ant", "bee"))
    assert scores.overall["ap50"] == 0


def test_ties_keep_the_order_of_images_and_detections():
    scene = [image([FIRST], [0]), image([FIRST], [0])]
    right, false = detections([FIRST], [0.5], [0]), detections([ELSEWHERE], [0.5], [0])
    # right first: 1 up to recall 1/2 (6 points), nothing beyond; false first: 1/2 at those 6
    assert score(scene, [right, false]).overall["ap50"] == pytest.approx(100 * 6 / 11)
    assert score(scene, [false, right]).overall["ap50"] == pytest.approx(100 * 3 / 11)
    one = detections([ELSEWHERE, FIRST], [0.5, 0.5], [0, 0])
    assert score([image([FIRST], [0])], [one]).overall["ap50"] == pytest.approx(50)


def test_an_iou_equal_to_the_threshold_is_enough():
    half = (0, 0, 4, 2)  # 8 of 16 px
    scores = score([image([FIRST], [0])], [detections([half], [0.9], [0])])
    assert scores.overall == pytest.approx({"ap": 10.0, "ap50": 100.0, "ap75": 0.0})


def test_a_detection_belongs_to_the_object_it_overlaps_most_even_if_that_is_matched():
    a, b = (0, 0, 10, 10), (0, 0, 10, 6)  # both overlap the second detection by more than half
    detected = detections([a, (0, 0, 10, 9)], [0.9, 0.8], [0, 0])
    scores = score([image([a, b], [0, 0])], [detected])
    assert scores.overall["ap50"] == pytest.approx(100 * 6 / 11)


def test_recall_is_compared_exactly():
    """3 of 10 reaches recall .3, although .1 * 3 > .3 in floating point."""
    for hits in range(1, 11):
        ap = score_voc.eleven_point(np.ones(hits, dtype=bool), 10)
        assert ap == pytest.approx((hits + 1) / 11)


def test_no_detections_score_0_and_no_objects_nothing():
    nothing = detections([], [], [])
    assert score([image([FIRST], [0])], [nothing]).overall == {"ap": 0, "ap50": 0, "ap75": 0}
    scores = score([image([], [])], [detections([FIRST], [0.9], [0])])
    assert scores.overall == {} and scores.classes == {"ant": {"objects": 0}}


def test_every_image_needs_its_detections():
    with pytest.raises(ValueError, match="shorter"):
        score([image([FIRST], [0])] * 2, [detections([], [], [])])


@given(scenes())
def test_it_equals_the_loops(scene):
    annotated, per_image = scene
    scores = score_voc.score(annotated, per_image)
    expected = {
        name: [voc_ap(annotated, per_image, label, percent) for percent in range(50, 100, 5)]
        for label, name in enumerate(CLASSES)
    }
    for name, aps in expected.items():
        if aps[0] is None:
            assert "ap" not in scores.classes[name]
            continue
        assert scores.classes[name]["ap"] == pytest.approx(np.mean(aps))
        assert scores.classes[name]["ap50"] == pytest.approx(aps[0])
        assert scores.classes[name]["ap75"] == pytest.approx(aps[5])
    means = [np.mean(aps) for aps in expected.values() if aps[0] is not None]
    assert scores.overall.get("ap") == (pytest.approx(np.mean(means)) if means else None)
