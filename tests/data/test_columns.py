"""The binary file of a manifest: the same columns as the CSV file, whatever happens to it."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmask.data import columns
from salmask.data.columns import Columns
from salmask.data.prepare import COLUMNS
from salmask.files import file_digest, write_rows

NAMES = ["a/one.png", "a,b.png", 'quo"te.png', "ümlaut.png", "new\nline.png", "cr\rx.png",
         "line\u2028separator.png", "not-utf8-\udcff.png", "", "x" * 251]  # fmt: skip


def write(folder: Path, count: int = len(NAMES)) -> str:
    """Writes a manifest.csv. Returns its digest."""
    values = (
        (i, NAMES[i], i % 3 - 1, ("train", "val")[i % 4 == 3], 9 + i, 5, f"{i:064x}")
        for i in range(count)
    )
    write_rows(
        folder / "manifest.csv", (dict(zip(COLUMNS, v, strict=True)) for v in values), COLUMNS
    )
    return file_digest(folder / "manifest.csv")


def content(rows: Columns) -> list[object]:
    arrays = [rows.splits, rows.labels, rows.sizes, rows.sha256.raw]
    lists = [(array.dtype, array.tolist()) for array in arrays]
    return [rows.paths.tolist(), rows.split_names, list(rows.sha256), *lists]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    columns.write_binary(tmp_path, write(tmp_path))
    return tmp_path


def test_rows_are_those_that_were_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(columns.read_csv(folder / "manifest.csv"))
    monkeypatch.setattr(columns, "read_csv", None)
    rows = columns.read(folder, file_digest(folder / "manifest.csv"))
    assert content(rows) == expected
    assert rows.paths.tolist() == NAMES and rows.paths[-1] == NAMES[-1]
    assert rows.paths[1:3] == NAMES[1:3] and len(rows.paths) == len(NAMES)
    assert rows.split_names == ("train", "val") and rows.splits.tolist()[:5] == [0, 0, 0, 1, 0]
    assert rows.labels.tolist()[:4] == [-1, 0, 1, -1]
    assert rows.sizes.tolist()[2] == [5, 11]  # height, width
    assert rows.sha256[9] == f"{9:064x}" and rows.sha256[2:4] == [f"{2:064x}", f"{3:064x}"]


def test_equal_manifests_have_equal_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    columns.write_binary(tmp_path / "other", write(tmp_path / "other"))
    one, two = (path / columns.FILE for path in (folder, tmp_path / "other"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("state", ["missing", "of another file"])
def test_without_its_binary_file_the_manifest_is_read(folder: Path, state: str) -> None:
    if state == "missing":
        (folder / columns.FILE).unlink()
    digest = write(folder, 5)
    assert columns.read(folder, digest).paths.tolist() == NAMES[:5]


@settings(max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 255))
def test_a_changed_byte_is_reported_or_has_no_effect(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    digest = write(folder)
    columns.write_binary(folder, digest)
    expected, file = content(columns.read_csv(folder / "manifest.csv")), folder / columns.FILE
    damaged = bytearray(file.read_bytes())
    damaged[place % len(damaged)] ^= change
    file.write_bytes(bytes(damaged))
    assert content(columns.read(folder, digest)) == expected


def test_a_damaged_file_gives_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / columns.FILE
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        rows = columns.read(folder, file_digest(folder / "manifest.csv"))
    assert rows.paths.tolist() == NAMES and "manifest.csv is read instead" in caplog.text
    assert isinstance(rows.labels, np.ndarray)
