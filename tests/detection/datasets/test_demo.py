import numpy as np
from PIL import Image

from salmask.detection import rle
from salmask.detection.datasets.demo import Images, read


def test_boxes_and_masks_are_where_the_objects_are_drawn(tmp_path):
    options = {"root": "", "images": Images(train=6, test=2), "side": 48}
    root, train, test = read(tmp_path, 3, **options)
    assert root == tmp_path and (len(train.images), len(test.images)) == (6, 2)
    assert train.has_masks() and len(train.classes) == 10
    assert {len(p) for p in train.images} > {1}  # one, and more than one
    for image in (*train.images, *test.images):
        assert Image.open(image.file).size == (48, 48)
        for box, area, mask in zip(image.boxes, image.areas, image.masks, strict=True):
            rows, columns = np.nonzero(rle.decode([mask])[0])
            assert len(rows) == area
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
        assert rle.decode(image.masks).sum(axis=0).max() == 1  # hidden parts are not in the mask
    again = read(tmp_path / "again", 3, **options)[1]
    for one, other in zip(train.images, again.images, strict=True):
        assert one.file.read_bytes() == other.file.read_bytes()
    other = read(tmp_path / "other", 4, **options)[1]
    assert train.images[0].file.read_bytes() != other.images[0].file.read_bytes()
