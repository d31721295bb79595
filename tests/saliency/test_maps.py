import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from salmask.data.columns import Digests
from salmask.data.decode import decode
from salmask.data.resample import resample
from salmask.errors import DataGoneError, UserError
from salmask.files import tree_digest, value_digest
from salmask.params.saliency import SaliencyConfig
from salmask.saliency import correction, crops, maps, store
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore
from salmask.saliency.trunks import Localizer, Trunk

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(33, 65), correction=0, shard_rows=4, batch=3)
CORRECTED = replace(CONFIG, correction=5)
SIZES = [(40, 60), (50, 50), (64, 32), (70, 45), (33, 90), (40, 40), (55, 61)]


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(SPEC)


@pytest.fixture
def manifest(make_manifest):
    """Seven images in two shards."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return make_manifest([(image, 0, "train") for image in images])


@pytest.fixture
def compute(trunk, job, tmp_path, monkeypatch):
    """Makes a store by name; returns its path. `lost` and `read` are lists of the latest store."""
    monkeypatch.setattr(correction, "_STEPS", 5)
    verified = maps.verified_image

    def spied(manifest, row, at_least=None):
        make.read.append(str(manifest.paths[row]))
        return verified(manifest, row, at_least)

    monkeypatch.setattr(maps, "verified_image", spied)

    def make(name: str, manifest, config=CONFIG, earlier=(), workers=0):
        make.read = []
        path = tmp_path / name / "saliency.zarr"
        plan = maps.plan(manifest, config, SPEC)
        some = replace(job, workers=workers)
        assert maps.fill(path, plan, manifest, trunk, config, some, earlier)
        make.lost = maps.finish(path, plan, manifest, trunk, config, some).tolist()
        return path

    return make


def some(manifest, rows: list[int]):
    """The manifest of some of the images, in this order."""
    return replace(
        manifest,
        digest=value_digest(rows),
        paths=[manifest.paths[row] for row in rows],
        splits=manifest.splits[rows],
        labels=manifest.labels[rows],
        sizes=manifest.sizes[rows],
        sha256=Digests(manifest.sha256.raw[rows]),
    )


def names(rows: list[int]) -> list[str]:
    return [f"{row:03d}.png" for row in rows]


def test_the_plan_follows_levels_images_and_localizer(manifest):
    plan = maps.plan(manifest, CORRECTED, SPEC)
    assert (plan.rows, plan.shards, plan.correction) == (7, 2, 5)
    # a convolution of stride 2 (33 -> 16, 65 -> 32), then three poolings of stride 2
    assert plan.grids == {33: (2, 2), 65: (4, 4)}
    assert plan.attributes["manifest"] == manifest.digest
    assert plan.attributes["localizer"]["arch"] == "squeezenet1_1"


def test_every_row_holds_the_activation_of_its_squashed_image(manifest, trunk, compute):
    path = compute("out", manifest)
    held, rows = SaliencyStore.open(path, manifest.digest), store.read_rows(path)
    assert compute.lost == []
    for row in range(len(manifest)):
        assert bytes(rows.sha256[row].tolist()).hex() == manifest.sha256[row]
        image = decode(manifest.file(row))
        for level in (33, 65):
            pixels = resample(image, (level, level))[None].float() / 255
            raw = trunk(pixels).sum(dim=1)
            result = held.activation(torch.tensor([row]), level)
            torch.testing.assert_close(result, raw / raw.mean(), atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(rows.mean[level][row], raw.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_do_not_change_a_byte(manifest, compute, workers):
    alone = compute("alone", manifest, CORRECTED)
    shared = compute("shared", manifest, CORRECTED, workers=workers)
    assert compute.read == []  # nothing is read in this process
    assert tree_digest(alone.parent) == tree_digest(shared.parent)


def test_bfloat16_gives_nearly_the_same_maps_and_is_not_the_default_on_a_cpu(manifest, compute):
    fine = replace(CONFIG, levels=(129,))  # 8 x 8 cells
    auto, exact, brief = (
        compute(precision, manifest, replace(fine, precision=precision))
        for precision in ("auto", "float32", "bfloat16")
    )
    assert tree_digest(auto.parent) == tree_digest(exact.parent)
    some_maps, others = (SaliencyStore.open(path).maps[129].float() for path in (exact, brief))
    assert not torch.equal(some_maps, others)
    for a, b in zip(some_maps, others, strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


# --------------------------------------------------------------------------------------- kills


def _before_the_second_shard(path, plan, index, result, write=store.write_shard) -> None:
    if index == 1:
        raise KeyboardInterrupt
    write(path, plan, index, result)


def _before_the_correction(path, fitted) -> None:
    raise KeyboardInterrupt


def _within_the_correction(path, fitted, write=store.write_correction) -> None:
    write(path, fitted)
    shutil.rmtree(path / "correction" / "layers.4.bias")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "dies", "done"),
    [
        ("write_shard", _before_the_second_shard, {0}),
        ("write_correction", _before_the_correction, {0, 1}),
        ("write_correction", _within_the_correction, {0, 1}),
    ],
)
def test_a_killed_computation_resumes_to_the_same_bytes(
    manifest, compute, tmp_path, monkeypatch, where, dies, done
):
    whole, broken = compute("whole", manifest, CORRECTED), tmp_path / "broken" / "saliency.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(store, where, dies)
        with pytest.raises(KeyboardInterrupt):
            compute("broken", manifest, CORRECTED)
    assert store.done_shards(broken, maps.plan(manifest, CORRECTED, SPEC)) == done
    with pytest.raises(UserError, match=r"remove the folder .*broken and run `dvc repro`"):
        SaliencyStore.open(broken)
    compute("broken", manifest, CORRECTED)
    left = names(range(4, 7)) if done == {0} else []
    assert compute.read[: len(compute.read) - CORRECTED.correction] == left
    assert tree_digest(broken.parent) == tree_digest(whole.parent)


# ------------------------------------------------------------------------------ earlier stores

SECOND = [6, 3, 0, 5, 2, 4]  # without 1, with 5 and 6, in another order


@pytest.mark.parametrize("config", [CONFIG, CORRECTED], ids=["plain", "corrected"])
def test_only_new_images_are_computed_and_the_bytes_are_those_of_all(manifest, compute, config):
    first = compute("first", some(manifest, [0, 1, 2, 3, 4]), config)
    second = some(manifest, SECOND)
    reused = compute("reused", second, config, [first])
    assert compute.read[: len(compute.read) - config.correction] == names([6, 5])
    full = compute("full", second, config)
    assert compute.read[:6] == names(SECOND)
    assert tree_digest(reused.parent) == tree_digest(full.parent)


def test_the_same_images_in_another_order_need_no_computation(manifest, compute):
    first = compute("first", manifest)
    back = some(manifest, [6, 5, 4, 3, 2, 1, 0])
    reused = compute("reused", back, earlier=[first])
    assert compute.read == []
    assert tree_digest(reused.parent) == tree_digest(compute("full", back).parent)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_earlier_store_that_holds_most_is_taken(manifest, compute, order):
    made = [
        compute(str(index), some(manifest, rows))
        for index, rows in enumerate([[0, 1], [4, 5, 3, 2], [1, 6, 0]])
    ]
    compute("out", manifest, earlier=[made[index] for index in order])
    assert compute.read == names([0, 1, 6])


def test_earlier_stores_without_any_of_the_images_change_nothing(manifest, compute):
    first = compute("first", some(manifest, [0, 1]))
    other = some(manifest, [5, 6])
    reused = compute("reused", other, earlier=[first])
    assert compute.read == names([5, 6])
    assert tree_digest(reused.parent) == tree_digest(compute("full", other).parent)


def test_two_images_of_the_same_content_share_a_stored_map(manifest, compute):
    first = compute("first", some(manifest, [0, 1]))
    twice = some(manifest, [1, 2, 1, 0])
    reused = compute("reused", twice, earlier=[first])
    assert compute.read == names([2])
    assert tree_digest(reused.parent) == tree_digest(compute("full", twice).parent)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: shutil.rmtree(path),
        lambda path: (path / "zarr.json").write_text("{"),
        lambda path: (path / "mean/33/c/0").write_bytes(b"nothing"),
        lambda path: (path / "mean/33/c/0").unlink(),
        lambda path: (path / "activation/65/c/1/0/0").unlink(),
        lambda path: (path / "sha256/zarr.json").unlink(),
    ],
    ids=["gone", "attributes", "changed mean", "no mean", "no map", "no digests"],
)
def test_a_damaged_earlier_store_is_reported_and_not_reused(manifest, compute, caplog, damage):
    full, first = compute("full", manifest), compute("first", manifest)
    good = compute("good", some(manifest, [1, 2]))
    damage(first)
    result = compute("out", manifest, earlier=[first, good])
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert str(first) in message and message.endswith("not reused")
    assert compute.read == names([0, 3, 4, 5, 6])
    assert tree_digest(result.parent) == tree_digest(full.parent)


# ------------------------------------------------------------------------- images that are lost


def _changed(file) -> None:
    Image.new("RGB", (64, 32), "red").save(file)


def _vanished(file) -> None:
    file.unlink()


def _corrupt(file) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _folder(file) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_changed, "it has changed since prepare"),
        (_vanished, "it no longer exists"),
        (_corrupt, "it has changed since prepare"),
        (_folder, "a folder, not a file"),
    ],
)
def test_a_lost_image_has_an_empty_map_and_is_reported(manifest, compute, caplog, damage, reason):
    before = store.read_rows(compute("before", manifest, CORRECTED))
    damage(manifest.file(2))
    path = compute("after", manifest, CORRECTED)
    assert compute.lost == [2]
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message == f"002.png: {reason}; its map is empty"
    assert compute.read.count("002.png") == 1  # not read again for the correction
    after, rest = store.read_rows(path), torch.arange(7) != 2
    assert not after.sha256[2].any()
    assert torch.equal(after.sha256[rest], before.sha256[rest])
    for level in CONFIG.levels:
        assert not after.activation[level][2].any() and after.mean[level][2] == 0
        assert torch.equal(after.activation[level][rest], before.activation[level][rest])
        assert torch.equal(after.mean[level][rest], before.mean[level][rest])
    result = SaliencyStore.open(path, manifest.digest).crop(
        torch.tensor([2]), torch.tensor([[0.1, 0.2, 0.5, 0.6]]), torch.tensor([True]), (5, 5)
    )
    assert foreground(result).all()


def test_an_image_that_exists_again_is_computed(manifest, compute):
    full = compute("full", manifest)
    content = manifest.file(2).read_bytes()
    manifest.file(2).unlink()
    lacking = compute("lacking", manifest)
    manifest.file(2).write_bytes(content)
    result = compute("result", manifest, earlier=[lacking])
    assert compute.read == ["002.png"] and compute.lost == []
    assert tree_digest(result.parent) == tree_digest(full.parent)


def test_an_image_that_is_lost_again_stays_lost(manifest, compute):
    manifest.file(2).write_bytes(b"no image")
    lacking = compute("lacking", manifest)
    again = compute("again", manifest, earlier=[lacking])
    assert compute.read == ["002.png"] and compute.lost == [2]
    assert tree_digest(again.parent) == tree_digest(lacking.parent)
    compute("lacking", manifest)  # a finished store still lists its lost images
    assert compute.read == [] and compute.lost == [2]


def test_no_image_at_all_is_an_error(manifest, compute):
    for row in range(7):
        manifest.file(row).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 7 images can still be read.*`dvc repro`"):
        compute("out", manifest, CORRECTED)


def test_a_folder_that_vanishes_loses_no_image(manifest, compute, tmp_path):
    shutil.move(manifest.root, tmp_path / "elsewhere")
    with pytest.raises(DataGoneError, match="does not exist: mount it"):
        compute("out", manifest)
    shutil.move(tmp_path / "elsewhere", manifest.root)
    compute("out", manifest)
    assert compute.lost == []


# ------------------------------------------------------------------------------- the correction


@pytest.fixture
def taught(monkeypatch):
    """The last arguments of `correction.fit`: crops, zoom, own maps."""
    measured, fit = [], correction.fit

    def spied(*given):
        measured[:] = given
        return fit(*given)

    monkeypatch.setattr(correction, "fit", spied)
    return measured


def test_the_correction_is_fitted_to_the_localizers_maps_of_the_views(
    manifest, trunk, compute, taught
):
    path = compute("out", manifest, CORRECTED)
    held, rows = taught[0], store.read_rows(path)
    ids, boxes = maps.sample_views(manifest, torch.ones(7, dtype=torch.bool), 5)
    torch.testing.assert_close(taught[1], crops.zoom_of(boxes))
    for view, (row, box) in enumerate(zip(ids.tolist(), boxes, strict=True)):
        pixels = resample(decode(manifest.file(row)), (33, 33), box)[None].float() / 255
        expected = trunk(pixels).sum(dim=1)[0]
        torch.testing.assert_close(taught[2][view], expected, atol=1e-3, rtol=1e-3)
        for level, whole in rows.activation.items():
            cropped = crops.resample(whole[row][None].float(), box[None], (2, 2), margin=1)[0]
            torch.testing.assert_close(held[level][view], cropped)
    fitted = correction.fit(*taught)
    for name, weight in SaliencyStore.open(path).correction.state_dict().items():
        assert torch.equal(weight, fitted.state_dict()[name])


def test_the_correction_is_not_fitted_to_replaced_images(manifest, trunk, compute, taught):
    first = compute("first", manifest, replace(CORRECTED, correction=14))
    manifest.file(2).write_bytes(b"no image")  # its earlier map is copied
    compute("out", manifest, replace(CORRECTED, correction=14), earlier=[first])
    gray = torch.tensor([124, 116, 104]).view(1, 3, 1, 1).expand(1, 3, 33, 33) / 255
    wrong = trunk(gray).sum(dim=1)[0]
    assert not any(torch.allclose(own, wrong, rtol=1e-3) for own in taught[2])


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 40))
def test_views_are_shared_evenly_among_usable_images(marks, count):
    usable = torch.tensor([True, *marks])
    sizes = torch.tensor([(40 + 10 * (i % 3), 70 - i) for i in range(len(usable))])
    ids, boxes = maps.sample_views(SimpleNamespace(sizes=sizes), usable, count)
    assert ids.shape == (count,) and boxes.shape == (count, 4)
    times = ids.bincount(minlength=len(usable))
    assert not times[~usable].any()
    assert times[usable].min() == count // int(usable.sum())
    assert times[usable].max() == math.ceil(count / int(usable.sum()))
    assert boxes.min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-6
    area = boxes[:, 2] * boxes[:, 3]
    assert area.min() > 0.2 - 1e-6 and area.max() < 1 + 1e-6
    # all differ, also those of one image
    assert len({tuple(box) for box in boxes.tolist()}) == count
    again = maps.sample_views(SimpleNamespace(sizes=sizes), usable, count)
    assert torch.equal(ids, again[0]) and torch.equal(boxes, again[1])
