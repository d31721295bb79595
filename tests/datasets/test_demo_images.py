"""The images of the demo."""

import numpy as np
import pytest

from salmask.datasets.demo_images import BACKGROUNDS, CLASSES, SPLITS, render


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_an_image_depends_on_seed_split_and_index_only(split):
    first = render(3, split, 11)
    render(3, split, 12)
    again = render(3, split, 11)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)


@pytest.mark.parametrize("other", [(4, "train", 11), (3, "val", 11), (3, "train", 21)])
def test_other_seeds_splits_and_indices_draw_other_images(other):
    assert not np.array_equal(render(3, "train", 11).image, render(*other).image)


def test_classes_alternate():
    labels = [render(0, "train", i, side=16).label for i in range(25)]
    assert labels == [i % len(CLASSES) for i in range(25)]


@pytest.mark.parametrize("index", range(8))
def test_the_mask_is_of_medium_size(index):
    drawn = render(1, "val", index)
    assert drawn.image.shape == (64, 64, 3) and drawn.image.dtype == np.uint8
    assert drawn.mask.shape == (64, 64) and drawn.mask.dtype == bool
    assert 0.1 < drawn.mask.mean() < 0.6


def test_a_larger_side_draws_the_same_scene():
    small, large = render(0, "train", 3, side=32), render(0, "train", 3, side=128)
    assert abs(small.mask.mean() - large.mask.mean()) < 0.02
    assert np.abs(box(large.mask) / 4 - box(small.mask)).max() <= 1
    assert (small.label, small.background) == (large.label, large.background)


def box(mask: np.ndarray) -> np.ndarray:
    """The first and the last row and column of a mask."""
    rows, columns = np.nonzero(mask)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


@pytest.mark.parametrize(
    ("split", "share"), [("train", 0.55), ("val", 0.55), ("decorrelated", 0.1)]
)
def test_backgrounds_follow_the_class_with_the_probability_of_the_split(split, share):
    # train: half of the images, and a tenth of the other half by chance
    drawn = [render(0, split, i, side=16) for i in range(400)]
    hits = np.mean([d.background == d.label for d in drawn])
    assert hits == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)
    assert {d.background for d in drawn} == set(range(len(BACKGROUNDS)))


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match=r"unknown split 'test', expected one of .*'train'"):
        render(0, "test", 0)
