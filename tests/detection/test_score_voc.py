import numpy as np
import pytest
from hypothesis import given

from salmask.detection import score_voc as voc
from tests.helpers.detection_by_loops import (
    CLASSES,
    annotations,
    detections,
    picture,
    scenes,
    voc_ap,
)

HERE, THERE, AWAY = (0, 0, 4, 4), (6, 6, 10, 10), (0, 6, 4, 10)


def score(pictures, found, classes=("ant",)):
    return voc.score(annotations(*pictures, classes=classes), found)


def test_all_found_and_nothing_else_is_100():
    found = score([picture([HERE, THERE], [0, 0])], [detections([HERE, THERE], [0.9, 0.8], [0, 0])])
    assert found.overall == pytest.approx({"ap": 100.0, "ap50": 100.0, "ap75": 100.0})
    assert found.classes["ant"]["objects"] == 2


def test_a_second_detection_of_an_object_is_false():
    # right, false (again HERE), right: precision 1 up to recall 1/2 (6 points), then 2/3 (5)
    seen = detections([HERE, HERE, THERE], [0.9, 0.8, 0.7], [0, 0, 0])
    found = score([picture([HERE, THERE], [0, 0])], [seen])
    assert found.overall["ap50"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_a_difficult_object_counts_neither_as_missed_nor_as_false():
    scene = [picture([HERE, THERE], [0, 0], [True, False])]
    without = score(scene, [detections([THERE], [0.5], [0])])
    twice = score(scene, [detections([HERE, HERE, THERE], [0.9, 0.8, 0.5], [0, 0, 0])])
    assert without.overall == twice.overall == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    assert twice.classes["ant"]["objects"] == 1


def test_only_difficult_objects_leave_the_class_out_of_the_mean():
    scene = [picture([HERE, THERE], [0, 1], [True, False])]
    found = score(scene, [detections([HERE, THERE], [0.9, 0.9], [0, 1])], ("ant", "bee"))
    assert found.overall["ap"] == pytest.approx(100)
    assert found.classes["ant"] == {"objects": 0}


def test_a_class_of_which_nothing_was_found_has_0_and_counts():
    found = score([picture([HERE, THERE], [0, 1])], [detections([HERE], [1], [0])], ("ant", "bee"))
    assert found.classes["bee"]["ap"] == 0
    assert found.overall["ap"] == pytest.approx(50)


def test_a_detection_of_another_class_is_false():
    found = score([picture([HERE], [0])], [detections([HERE], [0.9], [1])], ("ant", "bee"))
    assert found.overall["ap50"] == 0


def test_ties_keep_the_order_of_images_and_detections():
    scene = [picture([HERE], [0]), picture([HERE], [0])]
    right, false = detections([HERE], [0.5], [0]), detections([AWAY], [0.5], [0])
    # right first: 1 up to recall 1/2 (6 points), nothing beyond; false first: 1/2 at those 6
    assert score(scene, [right, false]).overall["ap50"] == pytest.approx(100 * 6 / 11)
    assert score(scene, [false, right]).overall["ap50"] == pytest.approx(100 * 3 / 11)
    one = detections([AWAY, HERE], [0.5, 0.5], [0, 0])
    assert score([picture([HERE], [0])], [one]).overall["ap50"] == pytest.approx(50)


def test_an_overlap_of_just_the_threshold_is_enough():
    half = (0, 0, 4, 2)  # 8 of 16 px
    found = score([picture([HERE], [0])], [detections([half], [0.9], [0])])
    assert found.overall == pytest.approx({"ap": 10.0, "ap50": 100.0, "ap75": 0.0})


def test_a_detection_belongs_to_the_object_it_overlaps_most_though_that_is_taken():
    a, b = (0, 0, 10, 10), (0, 0, 10, 6)  # both overlap the second detection by more than half
    seen = detections([a, (0, 0, 10, 9)], [0.9, 0.8], [0, 0])
    found = score([picture([a, b], [0, 0])], [seen])
    assert found.overall["ap50"] == pytest.approx(100 * 6 / 11)


@pytest.mark.parametrize("found", range(1, 11))
def test_recall_is_compared_exactly(found):
    """3 of 10 reaches recall .3, which numpy's .1 * 3 would miss."""
    hits = np.ones(found, dtype=bool)
    assert voc.eleven_point(hits, 10) == pytest.approx((found + 1) / 11)


def test_no_detections_score_0_and_no_objects_nothing():
    nothing = detections([], [], [])
    assert score([picture([HERE], [0])], [nothing]).overall == {"ap": 0, "ap50": 0, "ap75": 0}
    found = score([picture([], [])], [detections([HERE], [0.9], [0])])
    assert found.overall == {} and found.classes == {"ant": {"objects": 0}}


def test_every_picture_needs_its_detections():
    with pytest.raises(ValueError, match="shorter"):
        score([picture([HERE], [0])] * 2, [detections([], [], [])])


@given(scenes())
def test_it_equals_the_loops(scene):
    pictures, found = scene
    scores = voc.score(pictures, found)
    wanted = {
        name: [voc_ap(pictures, found, label, percent) for percent in range(50, 100, 5)]
        for label, name in enumerate(CLASSES)
    }
    for name, aps in wanted.items():
        if aps[0] is None:
            assert "ap" not in scores.classes[name]
            continue
        assert scores.classes[name]["ap"] == pytest.approx(np.mean(aps))
        assert scores.classes[name]["ap50"] == pytest.approx(aps[0])
        assert scores.classes[name]["ap75"] == pytest.approx(aps[5])
    means = [np.mean(aps) for aps in wanted.values() if aps[0] is not None]
    assert scores.overall.get("ap") == (pytest.approx(np.mean(means)) if means else None)
