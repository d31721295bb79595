import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmask.detection import rle


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_counts_are_read_as_pycocotools_writes_them(height, width, seed, share):
    mask = np.random.default_rng(seed).random((1, height, width)) < share
    (encoded,) = rle.encode(mask)
    stored = {"size": [height, width], "counts": encoded["counts"].decode()}
    assert rle.from_segmentation(stored, height, width) == encoded
    assert (rle.decode([encoded]) == mask).all() and rle.area(encoded) == mask.sum()


def test_masks_keep_their_order():
    masks = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    assert (rle.decode(rle.encode(masks)) == masks).all()


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 1 << 16)])
def test_invalid_image_sizes_are_refused(height, width):
    with pytest.raises(ValueError, match="invalid size"):
        rle.from_segmentation([[1, 1, 5, 5, 1, 5]], height, width)
