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
from salmask.provenance import tree_digest
from salmask.saliency import store
from salmask.saliency.scda import foreground
from salmask.saliency.store import Maps, Plan, SaliencyStore

ROWS, SHARD = 10, 4  # shards of 4, 4 and 2
GRIDS = {64: (2, 2), 128: (4, 3)}
LOCALIZER = {"name": "toy", "source": "0" * 64}
PLAN = Plan(ROWS, SHARD, GRIDS, {"manifest": "m" * 64, "localizer": LOCALIZER})
CORRECTED = replace(PLAN, correction=8)
MAPS = {
    level: torch.rand(ROWS, *grid, generator=torch.Generator().manual_seed(level)) * 1000
    for level, grid in GRIDS.items()
}
SHA256 = torch.arange(1, 1 + ROWS * 3).view(ROWS, 3).repeat(1, 11)[:, :32].to(torch.uint8)
FORCE = r"run `dvc repro --force saliency`"


def part(rows: range, raw=MAPS, sha256=SHA256) -> Maps:
    """Some rows of raw maps, as a store holds them."""
    some = slice(rows.start, rows.stop)
    return store.scaled({level: maps[some] for level, maps in raw.items()}, sha256[some])


def compute(shards):
    return (part(rows) for rows in shards)


def fill_one(path, raw: torch.Tensor) -> torch.Tensor:
    """A store of raw maps (n,U,V) at one level, and what is read from it."""
    plan = Plan(len(raw), len(raw), {64: tuple(raw.shape[1:])}, PLAN.attributes)
    store.fill(path, plan, lambda shards: (part(rows, {64: raw}) for rows in shards))
    return SaliencyStore.open(path).activation(torch.arange(len(raw)), 64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saliency" / "saliency.zarr"


@pytest.fixture
def filled(path):
    store.fill(path, PLAN, compute)
    return path


@pytest.fixture
def corrected(path, drawn_correction):
    store.fill(path, CORRECTED, compute)
    store.write_correction(path, drawn_correction)
    return path


# ------------------------------------------------------------------------------------- on disk


def test_what_is_written_is_read_divided_by_its_mean(filled):
    held = SaliencyStore.open(filled, "m" * 64, LOCALIZER)
    assert held.levels == [64, 128] and held.correction is None
    ids = torch.tensor([7, 0, 9])
    for level, maps in MAPS.items():
        wanted = maps[ids] / maps[ids].mean((1, 2), keepdim=True)
        found = held.activation(ids, level)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, atol=0, rtol=2**-11)  # half of float16's step
        torch.testing.assert_close(found.mean((1, 2)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_means_that_were_divided_out_and_the_digests_are_kept(filled):
    rows = store.read_rows(filled)
    assert torch.equal(rows.sha256, SHA256)
    group = zarr.open_group(filled, mode="r")
    for level, maps in MAPS.items():
        torch.testing.assert_close(rows.mean[level], maps.mean((1, 2)))
        assert group[f"activation/{level}"].dtype == "float16"
        assert group[f"activation/{level}"].chunks == (SHARD, *GRIDS[level])


def test_a_correction_is_read_as_it_was_written(corrected, drawn_correction):
    found = SaliencyStore.open(corrected).correction
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for name, weight in drawn_correction.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)


def test_sums_beyond_float16_survive(path):
    raw = torch.tensor([[[1e6, 2e6], [3e6, 6e6]]])
    torch.testing.assert_close(fill_one(path, raw), raw / 3e6, atol=0, rtol=2**-11)


def test_an_all_zero_map_stays_zero(path):
    found = fill_one(path, torch.stack([torch.zeros(2, 2), torch.eye(2)]))
    assert torch.equal(found, torch.stack([torch.zeros(2, 2), 2 * torch.eye(2)]))
    assert foreground(found)[0].all()


@pytest.mark.parametrize("values", [[-4.0, -2.0, -1.0, -1.0], [-3.0, 1.0, 1.0, -1.0]])
def test_a_map_of_negative_mean_keeps_its_foreground(path, values):
    raw = torch.tensor(values).view(1, 2, 2)
    assert torch.equal(foreground(fill_one(path, raw)), foreground(raw))


def test_a_map_whose_parts_cancel_stays_finite(path):
    assert fill_one(path, torch.tensor([[[-1.0, 1.0], [-1.0, 1.00001]]])).isfinite().all()


def test_rewriting_gives_the_same_bytes(tmp_path, drawn_correction):
    digests = set()
    for name in ("a", "a", "b"):
        path = tmp_path / name / "saliency.zarr"
        store.fill(path, CORRECTED, compute)
        store.write_correction(path, drawn_correction)
        digests.add(tree_digest(path.parent))
        store.write_shard(path, CORRECTED, 1, part(CORRECTED.shard(1)))
        digests.add(tree_digest(path.parent))
    assert len(digests) == 1


def test_an_image_without_digest_has_empty_maps_that_are_all_foreground(path, drawn_correction):
    sha256 = SHA256.clone()
    sha256[5] = 0
    store.fill(path, CORRECTED, lambda shards: (part(rows, sha256=sha256) for rows in shards))
    store.write_correction(path, drawn_correction)
    rows = store.read_rows(path)
    assert torch.equal(rows.sha256, sha256)
    assert all((rows.mean[level] == 0).nonzero().tolist() == [[5]] for level in GRIDS)
    held = SaliencyStore.open(path)
    ids, flips = torch.tensor([4, 5, 6]), torch.tensor([False, True, False])
    for box in ((0.0, 0.0, 1.0, 1.0), (0.2, 0.1, 0.4, 0.7)):
        views = torch.tensor([box]).expand(3, 4)
        for some in (held, SaliencyStore({}, held.maps)):  # with and without the correction
            found = some.crop(ids, views, flips, (7, 7))
            assert torch.equal(found[1], torch.zeros(7, 7))
            assert foreground(found).all(dim=2).all(dim=1).tolist() == [False, True, False]


# --------------------------------------------------------------------------------------- kills


@given(st.integers(1, 60), st.integers(1, 20))
def test_shards_share_the_rows_without_overlap(rows, shard_rows):
    plan = Plan(rows, shard_rows, GRIDS, {})
    covered = [row for index in range(plan.shards) for row in plan.shard(index)]
    assert covered == list(range(rows))
    assert all(0 < len(plan.shard(i)) <= shard_rows for i in range(plan.shards))


class KilledError(Exception):
    """Stands for a kill in the middle of the work."""


def test_a_kill_between_shards_loses_only_the_shard_in_work(path, tmp_path):
    asked = []

    def dies(shards):
        for rows in shards:
            asked.append(rows)
            if rows.start == 4:
                raise KilledError
            yield part(rows)

    with pytest.raises(KilledError):
        store.fill(path, PLAN, dies)
    assert asked == [range(0, 4), range(4, 8)]
    assert store.done_shards(path, PLAN) == {0}
    store.fill(path, PLAN, lambda shards: asked.append(shards) or compute(shards))
    assert asked[2:] == [[range(4, 8), range(8, 10)]]
    whole = tmp_path / "whole" / "saliency.zarr"
    store.fill(whole, PLAN, compute)
    assert tree_digest(path.parent) == tree_digest(whole.parent)


def test_a_kill_between_data_and_done_mark_redoes_the_shard(path, monkeypatch):
    store.create(path, PLAN)

    def killed(*ignored) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_json", killed)
        with pytest.raises(KilledError):
            store.write_shard(path, PLAN, 0, part(PLAN.shard(0)))
    assert store.done_shards(path, PLAN) == set()


@pytest.mark.parametrize("name", ["activation/128/c/1/0/0", "mean/64/c/1", "sha256/c/1/0"])
@pytest.mark.parametrize("damage", ["changed byte", "missing chunk"])
def test_a_done_shard_whose_data_changed_is_done_again(filled, name, damage):
    before = tree_digest(filled.parent)
    chunk = filled / name
    content = bytearray(chunk.read_bytes())
    if damage == "missing chunk":
        chunk.unlink()
    else:
        content[-1] ^= 1
        chunk.write_bytes(bytes(content))
    assert store.done_shards(filled, PLAN) == {0, 2}
    asked = []
    store.fill(filled, PLAN, lambda shards: asked.append(shards) or compute(shards))
    assert asked == [[range(4, 8)]]
    assert tree_digest(filled.parent) == before


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff"], ids=repr)
def test_a_shard_whose_done_mark_is_damaged_is_done_again(filled, content):
    before = tree_digest(filled.parent)
    (filled.parent / "shards" / "00001.done").write_bytes(content)
    store.fill(filled, PLAN, compute)
    assert tree_digest(filled.parent) == before


def test_done_marks_tell_their_shard(filled):
    marks = sorted((filled.parent / "shards").iterdir())
    assert [json.loads(mark.read_text())["shard"] for mark in marks] == [0, 1, 2]


# ------------------------------------------------------------------------------------- damage


def everything(path) -> list:
    """All that a reader can get from a store, as (dtype, shape, numbers)."""
    held, rows = SaliencyStore.open(path, "m" * 64, LOCALIZER), store.read_rows(path)
    tensors = [of[level] for of in (held.maps, rows.activation, rows.mean) for level in GRIDS]
    tensors += [rows.sha256, *(held.correction.state_dict().values() if held.correction else [])]
    return [held.attributes, *((t.dtype, t.shape, t.tolist()) for t in tensors)]


def outcome(path) -> list | str:
    """Everything, or what is said instead."""
    try:
        return everything(path)
    except UserError as error:
        return str(error)


@contextmanager
def damaged(file, content: bytes | None):
    """A file with other bytes, or without it; afterwards as it was."""
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
    store.fill(path, request.param, compute)
    if request.param.correction:
        store.write_correction(path, drawn_correction)
    files = sorted(file for file in path.parent.rglob("*") if file.is_file())
    assert len(files) >= 23  # metadata of 6 groups and arrays, 3 * 5 chunks, 3 done-marks
    return path, everything(path), files


@settings(max_examples=150)
@given(st.integers(0, 2**16), st.integers(0, 2**16), st.integers(1, 255))
def test_a_changed_byte_is_told_or_changes_nothing(intact, file, place, change):
    path, whole, files = intact
    file = files[file % len(files)]
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= change
    with damaged(file, bytes(content)):
        found = outcome(path)
    assert found == whole or "dvc repro" in found


def test_a_missing_file_is_told_or_changes_nothing(intact):
    path, whole, files = intact
    untold = []
    for file in files:
        with damaged(file, None):
            found = outcome(path)
        if found != whole and "dvc repro" not in found:
            untold.append(file.relative_to(path.parent).as_posix())
    assert not untold


def test_an_array_of_another_shape_is_refused(intact):
    path, _, files = intact
    untold = []
    for file in (file for file in files if file.name == "zarr.json"):
        described = json.loads(file.read_text())
        shape = described.get("shape", [])  # groups have none
        for side, by in ((side, by) for side in range(len(shape)) for by in (-1, 1)):
            described["shape"] = [n + by * (i == side) for i, n in enumerate(shape)]
            with damaged(file, json.dumps(described).encode()):
                if "--force saliency" not in outcome(path):
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
    ("change", "told"),
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
def test_what_is_not_whole_is_refused_with_the_way_out(corrected, change, told):
    change(corrected)
    with pytest.raises(UserError, match=rf"{told}.*{FORCE} to rebuild .*saliency\.zarr"):
        SaliencyStore.open(corrected, "m" * 64, LOCALIZER)


@pytest.mark.parametrize(
    ("wanted", "told"),
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
def test_a_store_of_something_else_is_refused(filled, wanted, told):
    SaliencyStore.open(filled)  # which asks for nothing in particular
    with pytest.raises(UserError, match=rf"{told}.*{FORCE}"):
        SaliencyStore.open(filled, *wanted)


def test_a_store_whose_correction_was_not_written_is_refused(path):
    store.fill(path, CORRECTED, compute)
    with pytest.raises(UserError, match=rf"damaged.*correction.*{FORCE}"):
        SaliencyStore.open(path)


def test_rows_that_are_not_numbers_are_refused(path):
    maps = {level: m.clone() for level, m in MAPS.items()}
    maps[128][3, 0, 0] = math.nan
    store.fill(path, PLAN, lambda shards: (part(rows, maps) for rows in shards))
    with pytest.raises(UserError, match=rf"1 rows of level 128 are missing.*{FORCE}"):
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
    with pytest.raises(UserError, match="another store; remove the folder"):
        store.fill(filled, other, compute)
    assert tree_digest(filled.parent) == before
