import dataclasses

import numpy as np
import pytest
import torch

from salmask.config import SaliencyConfig
from salmask.data.images import decode, resample
from salmask.provenance import tree_digest
from salmask.saliency import maps, store
from salmask.saliency.localizers import Localizer, Trunk
from salmask.saliency.store import SaliencyStore

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(33, 65), shard_rows=4, batch=3)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(SPEC)


@pytest.fixture
def manifest(make_manifest):
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (50, 50), (64, 32), (70, 45), (33, 90), (40, 40), (55, 61)]
    return make_manifest(
        [(rng.integers(0, 256, (*s, 3), dtype=np.uint8), 0, "train") for s in sizes]
    )


def test_the_plan_follows_levels_images_and_localizer(manifest):
    plan = maps.plan(manifest, CONFIG, SPEC)
    assert (plan.rows, plan.shards) == (7, 2)
    # a convolution of stride 2 (33 -> 16, 65 -> 32), then three poolings of stride 2
    assert plan.grids == {33: (2, 2), 65: (4, 4)}
    assert plan.attributes["manifest"] == manifest.digest
    assert plan.attributes["localizer"]["arch"] == "squeezenet1_1"


def test_every_row_holds_the_activation_of_its_squashed_image(manifest, trunk, job, tmp_path):
    path = tmp_path / "out" / "saliency.zarr"
    plan = maps.plan(manifest, CONFIG, SPEC)
    maps.compute(path, plan, manifest, trunk, CONFIG.batch, job)
    held = SaliencyStore.open(path, manifest.digest)
    for row in range(len(manifest)):
        image = decode(manifest.file(row))
        for level in (33, 65):
            pixels = resample(image, (level, level))[None].float() / 255
            raw = trunk(pixels).sum(dim=1)
            found = held.activation(torch.tensor([row]), level)
            torch.testing.assert_close(found, raw / raw.mean(), atol=1e-3, rtol=1e-3)


def test_a_killed_computation_goes_on_to_the_same_bytes(
    manifest, trunk, job, tmp_path, monkeypatch
):
    plan = maps.plan(manifest, CONFIG, SPEC)
    whole, broken = (tmp_path / name / "saliency.zarr" for name in ("whole", "broken"))
    maps.compute(whole, plan, manifest, trunk, CONFIG.batch, job)
    write = store.write_shard

    def dies(path, plan, index, found) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(path, plan, index, found)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            maps.compute(broken, plan, manifest, trunk, CONFIG.batch, job)
    assert store.done_shards(broken, plan) == {0}
    maps.compute(broken, plan, manifest, trunk, CONFIG.batch, job)
    assert tree_digest(broken.parent) == tree_digest(whole.parent)


def test_worker_processes_do_not_change_a_byte(manifest, trunk, job, tmp_path):
    plan = maps.plan(manifest, CONFIG, SPEC)
    paths = {workers: tmp_path / str(workers) / "saliency.zarr" for workers in (0, 1)}
    for workers, path in paths.items():
        some = dataclasses.replace(job, workers=workers)
        maps.compute(path, plan, manifest, trunk, CONFIG.batch, some)
    assert tree_digest(paths[0].parent) == tree_digest(paths[1].parent)


def test_an_image_that_broke_since_prepare_is_replaced_and_told(
    manifest, trunk, job, tmp_path, caplog
):
    manifest.file(2).write_bytes(b"no image")
    path = tmp_path / "out" / "saliency.zarr"
    maps.compute(path, maps.plan(manifest, CONFIG, SPEC), manifest, trunk, CONFIG.batch, job)
    assert "row 2" in caplog.text and "gray" in caplog.text
    assert len(SaliencyStore.open(path).maps[33]) == 7
