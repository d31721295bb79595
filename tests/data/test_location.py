"""Images that move cost one `prepare`, and those inside the project move with it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmask.data import location, manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.errors import UserError


def prepare(images: Path, data: Path) -> dict[str, bytes]:
    """Prepares the image in a folder. Returns the files that later stages depend on."""
    data.mkdir(parents=True, exist_ok=True)
    listing = Listing(images, ("a",), [ListedFile("a.png", 0, "train")])
    write_manifest(listing, "toy", data, 0)
    return {name: (data / name).read_bytes() for name in ("manifest.csv", "dataset.json")}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "project/images").mkdir(parents=True)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "project/images/a.png")
    return tmp_path / "project/images"


def test_what_later_stages_read_does_not_depend_on_the_place(images, tmp_path):
    data = tmp_path / "data"
    before = prepare(images, data)
    images.rename(tmp_path / "mount")
    with pytest.raises(UserError, match="project/images"):
        manifest.load(data)
    assert prepare(tmp_path / "mount", data) == before
    assert manifest.load(data).file(0) == tmp_path / "mount/a.png"


def test_a_project_can_be_moved_with_its_images(images, tmp_path, monkeypatch):
    project = images.parent
    monkeypatch.chdir(project)
    prepare(images, project / "artifacts/data")
    monkeypatch.chdir(tmp_path)
    shutil.move(project, tmp_path / "moved")
    rows = manifest.load(tmp_path / "moved/artifacts/data")
    assert rows.file(0) == tmp_path / "moved/images/a.png"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"images": 5}'])
def test_a_damaged_location_names_the_file(images, tmp_path, content):
    prepare(images, tmp_path / "data")
    file = tmp_path / "data/location.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"location\.json is (missing|damaged)"):
        location.load(tmp_path / "data")
