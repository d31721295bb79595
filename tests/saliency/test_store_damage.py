"""Stores that are damaged, unfinished or of something else."""

import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from salmask.errors import UserError
from salmask.files import file_digest, tree_digest, write_json
from salmask.saliency import store
from salmask.saliency.store import SaliencyStore
from tests.helpers.small_store import (
    CORRECTED,
    GRIDS,
    LOCALIZER,
    MAPS,
    PLAN,
    REPAIR,
    ROWS,
    SHARD,
    compute,
    fill,
    part,
)

# ------------------------------------------------------------------------------------- damage


def everything(path) -> list:
    """The whole content of a store, as (dtype, shape, numbers)."""
    held, rows = SaliencyStore.open(path, "m" * 64, LOCALIZER), store.read_rows(path)
    tensors = [of[level] for of in (held.maps, rows.activation, rows.mean) for level in GRIDS]
    tensors += [rows.sha256, *(held.correction.state_dict().values() if held.correction else [])]
    return [held.attributes, *((t.dtype, t.shape, t.tolist()) for t in tensors)]


def outcome(path) -> list | str:
    """The content of a store, or the error message."""
    try:
        return everything(path)
    except UserError as error:
        return str(error)


@contextmanager
def damaged(file, content: bytes | None):
    """Replaces or removes a file, and restores it afterwards."""
    before = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module", params=[PLAN, CORRECTED], ids=["plain", "corrected"])
def intact(request, tmp_path_factory, drawn_correction):
    """A store, everything in it, and its files."""
    path = tmp_path_factory.mktemp("intact") / "saliency.zarr"
    fill(path, request.param, compute)
    if request.param.correction:
        store.write_correction(path, drawn_correction)
    files = sorted(file for file in path.parent.rglob("*") if file.is_file())
    assert len(files) >= 23  # metadata of 6 groups and arrays, 3 * 5 chunks, 3 done-marks
    return path, everything(path), files


@settings(max_examples=150)
@given(st.integers(0, 2**16), st.integers(0, 2**16), st.integers(1, 255))
def test_a_changed_byte_is_reported_or_has_no_effect(intact, file, place, change):
    path, whole, files = intact
    file = files[file % len(files)]
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= change
    with damaged(file, bytes(content)):
        result = outcome(path)
    assert result == whole or "dvc repro" in result


def test_a_missing_file_is_reported_or_has_no_effect(intact):
    path, whole, files = intact
    untold = []
    for file in files:
        with damaged(file, None):
            result = outcome(path)
        if result != whole and "dvc repro" not in result:
            untold.append(file.relative_to(path.parent).as_posix())
    assert not untold


def test_a_chunk_of_other_rows_is_refused(filled):
    """Its checksum is right: only the record of the store's digests shows the exchange."""
    names = [file.relative_to(filled.parent) for file in filled.rglob("*") if file.is_file()]
    record = {str(name): file_digest(filled.parent / name) for name in names}
    write_json(filled.parent / "provenance.json", {"outputs": record})
    SaliencyStore.open(filled)
    first, second = (filled / f"activation/64/c/{shard}/0/0" for shard in (0, 1))
    shutil.copy(first, second)
    with pytest.raises(UserError, match=rf"activation/64/c/1/0/0 is not the one in.*{REPAIR}"):
        SaliencyStore.open(filled)


def test_an_array_of_another_shape_is_refused(intact):
    path, _, files = intact
    untold = []
    for file in (file for file in files if file.name == "zarr.json"):
        described = json.loads(file.read_text())
        shape = described.get("shape", [])  # groups have no shape
        for side, by in ((side, by) for side in range(len(shape)) for by in (-1, 1)):
            described["shape"] = [n + by * (i == side) for i, n in enumerate(shape)]
            with damaged(file, json.dumps(described).encode()):
                if "remove the folder" not in outcome(path):
                    untold.append((file.parent.name, described["shape"]))
    assert not untold


# -------------------------------------------------------------------------------------- refusals


def without(name: str):
    return lambda path: shutil.rmtree(path / name)


def with_attribute(key: str, value):
    return lambda path: zarr.open_group(path, mode="r+").attrs.update({key: value})


def without_digests(path) -> None:
    maps = replace(part(range(4, 8)), sha256=torch.zeros(4, 32, dtype=torch.uint8))
    store.write_shard(path, CORRECTED, 1, maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_attribute("schema", "salmask.saliency/1"), r"schema salmask\.saliency/1, not .*/2"),
        (with_attribute("manifest", "n" * 64), "attributes were changed"),
        (with_attribute("correction", 0), "attributes were changed"),
        (with_attribute("seal", "0" * 64), "attributes were changed"),
        (without("correction"), "damaged.*correction"),
        (without("correction/layers.2.bias"), r"damaged.*correction/layers\.2\.bias"),
        (without("sha256"), "damaged.*sha256"),
        (without("activation/64"), "damaged.*activation/64"),
        (without("activation/64/c/1"), "4 rows of level 64 are missing"),
        (without_digests, "damaged.*digests are missing"),
    ],
)
def test_an_incomplete_store_is_refused_with_the_command_that_repairs_it(
    corrected, change, message
):
    change(corrected)
    with pytest.raises(UserError, match=rf"{message}.*{REPAIR}"):
        SaliencyStore.open(corrected, "m" * 64, LOCALIZER)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (("n" * 64,), "another set of images .*mmmm.*yours is nnnn"),
        (
            ("m" * 64, LOCALIZER | {"source": "f" * 64}),
            r"localizer \(toy 0{12}, yours is toy f{12}\)",
        ),
        (("m" * 64, LOCALIZER | {"stride": 16}), "another localizer"),
    ],
    ids=["manifest", "weights", "stride"],
)
def test_a_store_of_something_else_is_refused(filled, expected, message):
    SaliencyStore.open(filled)  # without expectations
    with pytest.raises(UserError, match=rf"{message}.*{REPAIR}"):
        SaliencyStore.open(filled, *expected)


def test_a_store_whose_correction_was_not_written_is_refused(path):
    fill(path, CORRECTED, compute)
    with pytest.raises(UserError, match=rf"damaged.*correction.*{REPAIR}"):
        SaliencyStore.open(path)


def test_a_published_store_is_rebuilt_by_its_stage(filled):
    shutil.rmtree(filled.parent / "shards")
    (filled / "sha256" / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"run `dvc repro --force saliency` to rebuild .*\.zarr"):
        SaliencyStore.open(filled)


def test_rows_that_are_not_numbers_are_refused(path):
    maps = {level: m.clone() for level, m in MAPS.items()}
    maps[128][3, 0, 0] = math.nan
    fill(path, PLAN, lambda shards: (part(rows, maps) for rows in shards))
    with pytest.raises(UserError, match=rf"1 rows of level 128 are missing.*{REPAIR}"):
        SaliencyStore.open(path)


def test_a_missing_store_says_what_to_run(path):
    with pytest.raises(UserError, match=r"no saliency store.*`dvc repro saliency`"):
        SaliencyStore.open(path)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, attributes={"manifest": "n" * 64, "localizer": LOCALIZER}),
        replace(PLAN, shard_rows=SHARD + 1),
        replace(PLAN, rows=ROWS + 1),
        replace(PLAN, grids={64: (2, 2)}),
        CORRECTED,
    ],
    ids=["manifest", "shards", "rows", "levels", "correction"],
)
def test_a_store_is_never_filled_by_another_plan(filled, other):
    before = tree_digest(filled.parent)
    with pytest.raises(UserError, match="a different store; remove the folder"):
        fill(filled, other, compute)
    assert tree_digest(filled.parent) == before
