"""Drawings of several objects for the demo of detection."""

import numpy as np
import pytest

from salmask.datasets.demo_images import render
from salmask.datasets.demo_scenes import scene


def test_a_scene_of_one_object_is_the_image_of_the_demo() -> None:
    drawn, alone = scene(3, "val", 7, side=48, most=1), render(3, "val", 7, 48)
    assert np.array_equal(drawn.image, alone.image)
    assert np.array_equal(drawn.masks, alone.mask[None]) and drawn.labels.tolist() == [7]


@pytest.mark.parametrize("index", range(8))
def test_objects_hide_those_behind_them(index: int) -> None:
    drawn = scene(0, "train", index, side=64, most=4)
    assert drawn.masks.shape == (len(drawn.labels), 64, 64) and 1 <= len(drawn.labels) <= 4
    assert drawn.masks.sum(axis=0).max() == 1
    ground = render(0, "train", index, 64)
    other = (drawn.image != ground.image).any(axis=2)
    if drawn.labels[0] == ground.label and (drawn.masks[0] <= ground.mask).all():
        assert not (drawn.masks[0] & other).any()  # its visible part is unchanged
    again = scene(0, "train", index, side=64, most=4)
    assert np.array_equal(again.image, drawn.image)


def test_there_are_scenes_with_one_and_with_several() -> None:
    counts = {len(scene(0, "train", index, side=32).labels) for index in range(20)}
    assert counts == {1, 2, 3}
