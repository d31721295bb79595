"""Results of detectors in the report."""

import io

import pytest
from PIL import Image

from salmask.errors import UserError
from salmask.files import write_bytes
from salmask.report import detections

ROWS = """kind,class,objects,ap,ap50,ap_s
box,cat,3,12.3456,50.0000,
box,dog,0,,,
mask,cat,3,10.0000,25.5000,
mask,dog,0,,,
"""


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "plain/detect-zoo"
    sheet = io.BytesIO()
    Image.new("RGB", (9, 9)).save(sheet, "PNG")
    write_bytes(out / "detections.png", sheet.getvalue())
    write_bytes(out / "classes.csv", ROWS.encode())
    return out


def test_classes_with_objects_and_columns_with_numbers_are_shown(folder):
    results = detections.read(folder, "plain", "zoo")
    assert results.png[:4] == b"\x89PNG"
    assert (results.facts["run"], results.facts["dataset"]) == ("plain", "zoo")
    boxes, masks = results.facts["tables"]
    assert (boxes.kind, list(boxes.columns)) == ("box", ["ap", "ap50"])
    assert boxes.rows == [("cat", 3, [12.3456, 50.0])]
    assert masks.rows == [("cat", 3, [10.0, 25.5])]


def test_a_missing_sheet_is_refused(folder):
    (folder / "detections.png").unlink()
    with pytest.raises(UserError, match=r"detections\.png is missing: run `dvc repro detect`"):
        detections.read(folder, "plain", "zoo")
