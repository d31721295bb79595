import json

import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from salmask.files import tree_digest
from salmask.saliency import store
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore
from salmask.saliency.store_rows import StorePlan
from tests.helpers.small_store import (
    CORRECTED,
    GRIDS,
    LOCALIZER,
    MAPS,
    PLAN,
    SHA256,
    SHARD,
    compute,
    fill,
    fill_one,
    part,
)

# ------------------------------------------------------------------------------------- on disk


def test_what_is_written_is_read_divided_by_its_mean(filled):
    held = SaliencyStore.open(filled, "m" * 64, LOCALIZER)
    assert held.levels == [64, 128] and held.correction is None
    ids = torch.tensor([7, 0, 9])
    for level, maps in MAPS.items():
        expected = maps[ids] / maps[ids].mean((1, 2), keepdim=True)
        result = held.activation(ids, level)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, atol=0, rtol=2**-11)  # half of float16's step
        torch.testing.assert_close(result.mean((1, 2)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_means_that_were_divided_out_and_the_digests_are_kept(filled):
    rows = store.read_rows(filled)
    assert torch.equal(rows.sha256, SHA256)
    group = zarr.open_group(filled, mode="r")
    for level, maps in MAPS.items():
        torch.testing.assert_close(rows.mean[level], maps.mean((1, 2)))
        assert group[f"activation/{level}"].dtype == "float16"
        assert group[f"activation/{level}"].chunks == (SHARD, *GRIDS[level])


def test_a_correction_is_read_as_it_was_written(corrected, drawn_correction):
    result = SaliencyStore.open(corrected).correction
    assert not result.training and not any(p.requires_grad for p in result.parameters())
    for name, weight in drawn_correction.state_dict().items():
        assert torch.equal(result.state_dict()[name], weight)


def test_sums_beyond_float16_survive(path):
    raw = torch.tensor([[[1e6, 2e6], [3e6, 6e6]]])
    torch.testing.assert_close(fill_one(path, raw), raw / 3e6, atol=0, rtol=2**-11)


def test_an_all_zero_map_stays_zero(path):
    result = fill_one(path, torch.stack([torch.zeros(2, 2), torch.eye(2)]))
    assert torch.equal(result, torch.stack([torch.zeros(2, 2), 2 * torch.eye(2)]))
    assert foreground(result)[0].all()


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
        fill(path, CORRECTED, compute)
        store.write_correction(path, drawn_correction)
        digests.add(tree_digest(path.parent))
        store.write_shard(path, CORRECTED, 1, part(CORRECTED.shard(1)))
        digests.add(tree_digest(path.parent))
    assert len(digests) == 1


def test_an_image_without_digest_has_empty_maps_that_are_all_foreground(path, drawn_correction):
    sha256 = SHA256.clone()
    sha256[5] = 0
    fill(path, CORRECTED, lambda shards: (part(rows, sha256=sha256) for rows in shards))
    store.write_correction(path, drawn_correction)
    rows = store.read_rows(path)
    assert torch.equal(rows.sha256, sha256)
    assert all((rows.mean[level] == 0).nonzero().tolist() == [[5]] for level in GRIDS)
    held = SaliencyStore.open(path)
    ids, flips = torch.tensor([4, 5, 6]), torch.tensor([False, True, False])
    for box in ((0.0, 0.0, 1.0, 1.0), (0.2, 0.1, 0.4, 0.7)):
        views = torch.tensor([box]).expand(3, 4)
        for some in (held, SaliencyStore({}, held.maps)):  # with and without the correction
            result = some.crop(ids, views, flips, (7, 7))
            assert torch.equal(result[1], torch.zeros(7, 7))
            assert foreground(result).all(dim=2).all(dim=1).tolist() == [False, True, False]


# --------------------------------------------------------------------------------------- kills


@given(st.integers(1, 60), st.integers(1, 20))
def test_shards_share_the_rows_without_overlap(rows, shard_rows):
    plan = StorePlan(rows, shard_rows, GRIDS, {})
    covered = [row for index in range(plan.shards) for row in plan.shard(index)]
    assert covered == list(range(rows))
    assert all(0 < len(plan.shard(i)) <= shard_rows for i in range(plan.shards))


class KilledError(Exception):
    """Simulates a kill in the middle of the work."""


def test_a_kill_between_shards_loses_only_the_shard_in_work(path, tmp_path):
    requests = []

    def dies(shards):
        for rows in shards:
            requests.append(rows)
            if rows.start == 4:
                raise KilledError
            yield part(rows)

    with pytest.raises(KilledError):
        fill(path, PLAN, dies)
    assert requests == [range(0, 4), range(4, 8)]
    assert store.done_shards(path, PLAN) == {0}
    fill(path, PLAN, lambda shards: requests.append(shards) or compute(shards))
    assert requests[2:] == [[range(4, 8), range(8, 10)]]
    whole = tmp_path / "whole" / "saliency.zarr"
    fill(whole, PLAN, compute)
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
    requests = []
    fill(filled, PLAN, lambda shards: requests.append(shards) or compute(shards))
    assert requests == [[range(4, 8)]]
    assert tree_digest(filled.parent) == before


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff"], ids=repr)
def test_a_shard_whose_done_mark_is_damaged_is_done_again(filled, content):
    before = tree_digest(filled.parent)
    (filled.parent / "shards" / "00001.done").write_bytes(content)
    fill(filled, PLAN, compute)
    assert tree_digest(filled.parent) == before


def test_done_marks_contain_the_number_of_their_shard(filled):
    marks = sorted((filled.parent / "shards").iterdir())
    assert [json.loads(mark.read_text())["shard"] for mark in marks] == [0, 1, 2]
