"""kill -9 at random instants: what is killed goes on, and ends in an undisturbed run's bytes."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from salmask.config import SaliencyConfig
from salmask.provenance import tree_digest
from salmask.saliency import correction, maps
from salmask.saliency.localizers import Localizer, Trunk

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(64, 96), correction=8, shard_rows=4, batch=3)
KILLS = 20


@pytest.mark.timeout(300)
def test_twenty_kills_end_in_the_same_bytes(make_manifest, job, tmp_path, monkeypatch):
    monkeypatch.setattr(correction, "_STEPS", 20)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8) for i in range(30)]
    manifest = make_manifest([(image, 0, "train") for image in pixels])
    torch.manual_seed(0)
    trunk = Trunk(SPEC)
    plan = maps.plan(manifest, CONFIG, SPEC)

    def fill(name: str):
        path = tmp_path / name / "saliency.zarr"
        maps.fill(path, plan, manifest, trunk, CONFIG, job)
        maps.finish(path, plan, manifest, trunk, CONFIG, job)
        return path

    begin = time.monotonic()
    calm = tree_digest(fill("calm"))
    whole = time.monotonic() - begin

    kills, stores, halves = 0, 0, set()
    while kills < KILLS:
        child = os.fork()
        if child == 0:  # pragma: no cover
            fill(f"killed-{stores}")
            os._exit(0)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        place = tmp_path / f"killed-{stores}"
        if os.WIFSIGNALED(status):
            kills += 1
            halves.add(len(list(place.glob("shards/*.done"))))
        else:
            assert os.WEXITSTATUS(status) == 0
            assert tree_digest(place / "saliency.zarr") == calm
            stores += 1
    assert tree_digest(fill(f"killed-{stores}")) == calm
    assert len(halves) > 3, "the kills came too much alike to say anything"
