"""The demo as a data set."""

import numpy as np
from PIL import Image

from salmask.data import manifest
from salmask.data.decode import decode
from salmask.data.prepare import write_manifest
from salmask.datasets import demo
from salmask.datasets.demo_images import CLASSES, render
from tests.helpers.trees import read_dataset


def test_the_demo_draws_images_and_masks(tmp_path):
    counts = {"train": 12, "val": 3, "decorrelated": 2}
    listing = demo.read(tmp_path, 5, root="ignored", images=counts)
    assert listing.classes == CLASSES
    assert [f.split for f in listing.files] == ["train"] * 12 + ["val"] * 3 + ["decorrelated"] * 2
    write_manifest(listing, "demo", tmp_path, 0)
    rows = manifest.load(tmp_path)
    drawn = render(5, "val", 2)
    row = rows.paths.tolist().index("val/00002.png")
    assert np.array_equal(np.array(decode(rows.file(row))), drawn.image)
    mask = np.array(Image.open(tmp_path / "masks" / "val" / "00002.png"))
    assert np.array_equal(mask.astype(bool), drawn.mask)
    assert rows.labels[row] == drawn.label


def test_first_gives_other_images(tmp_path):
    some = read_dataset(tmp_path, "demo", images={"train": 3}, first=1000)
    assert [file.path for file in some.files] == [f"train/0100{n}.png" for n in range(3)]
    assert (some.root / "train/01002.png").is_file()
