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
SHARDS = 8
AT = [(0, 2, 6), (1, 4), (3, 5, 7), (0, 1)]  # finished shards at the kills of each store
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


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

    def shards(name: str) -> int:
        return len(list((tmp_path / name).glob("shards/*.done")))

    def killed(name: str, finished: int) -> bool:
        """Starts a process that fills the store, and kills it at a random time after it has
        `finished` shards. Returns whether it was killed before its end."""
        child = os.fork()
        if child == 0:  # pragma: no cover
            fill(name)
            os._exit(0)
        while shards(name) < finished and not os.waitid(os.P_PID, child, ENDED):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, min(whole / SHARDS, 0.1)))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    progress = set()
    for number, finished in enumerate(AT):
        name = f"killed-{number}"
        for least in finished:
            if killed(name, least):
                progress.add(shards(name))
        assert tree_digest(fill(name)) == calm
    assert len(progress) > 3
