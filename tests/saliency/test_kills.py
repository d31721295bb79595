"""kill -9 at random times: killed work resumes, and ends in the bytes of an undisturbed run."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from salmask.files import tree_digest
from salmask.params.saliency import SaliencyConfig
from salmask.saliency import correction, maps
from salmask.saliency.trunks import Localizer, Trunk

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(64, 96), correction=8, shard_rows=4, batch=3)
KILLS = 10
AT_ONCE = 3  # maximum number of kills for one store


@pytest.mark.timeout(300)
def test_kills_end_in_the_same_bytes(make_manifest, job, tmp_path, monkeypatch):
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

    def killed(name: str, seconds: float) -> bool:
        """Starts a process that fills the store; returns whether it was killed before its end."""
        child = os.fork()
        if child == 0:  # pragma: no cover
            fill(name)
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    kills, stores, halves = 0, 0, set()
    while kills < KILLS:
        name = f"killed-{stores}"
        for _ in range(AT_ONCE):
            if not killed(name, rng.uniform(0, whole)):
                break
            kills += 1
            halves.add(len(list((tmp_path / name).glob("shards/*.done"))))
        assert tree_digest(fill(name)) == calm
        stores += 1
    assert len(halves) > 3, "the kills came too much alike to say anything"
