"""Flowers-102 in its real layout, with a few images."""

import numpy as np
import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, read_dataset


@pytest.mark.parametrize("place", [".", "flowers-102"])
def test_flowers102_by_its_official_files(tmp_path, place):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "root" / place
    make_images(root, *(f"jpg/image_{n:05d}.jpg" for n in range(1, 5)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 2, 77, 2]])})
    savemat(root / "setid.mat", {"trnid": [[3]], "valid": [[1]], "tstid": [[2, 4]]})
    assert files_by_split(read_dataset(tmp_path, "flowers102")) == {
        "train": [("jpg/image_00003.jpg", "077")],
        "val": [("jpg/image_00001.jpg", "077")],
        "test": [("jpg/image_00002.jpg", "002"), ("jpg/image_00004.jpg", "002")],
    }
    (root / "setid.mat").write_bytes(b"no such file, says a server, in 1000 words" * 9)
    with pytest.raises(
        UserError, match=r"setid\.mat is not in the expected format: .*\. Expected for flowers102"
    ):
        read_dataset(tmp_path, "flowers102")
    (root / "setid.mat").unlink()
    with pytest.raises(
        UserError, match=r"setid\.mat cannot be read: no such.*`salmask fetch flowe"
    ):
        read_dataset(tmp_path, "flowers102")
    (root / "jpg").rename(root / "images")
    with pytest.raises(
        UserError, match=r"root(/flowers-102)?/jpg does not exist\. Expected for flowers102"
    ):
        read_dataset(tmp_path, "flowers102")
