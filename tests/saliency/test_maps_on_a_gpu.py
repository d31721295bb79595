"""The same images on a GPU and on a CPU, in float32. Skips where there is no GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from salmask.config import SaliencyConfig
from salmask.saliency import maps
from salmask.saliency.localizers import Localizer, Trunk
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(96, 128), correction=0, precision="float32", shard_rows=16, batch=8)


def store_by(device: str, job, manifest, path) -> SaliencyStore:
    torch.manual_seed(0)
    trunk = Trunk(SPEC).to(device)
    there, plan = replace(job, device=torch.device(device)), maps.plan(manifest, CONFIG, SPEC)
    assert maps.fill(path, plan, manifest, trunk, CONFIG, there)
    maps.finish(path, plan, manifest, trunk, CONFIG, there)
    return SaliencyStore.open(path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_finds_the_maps_of_a_cpu(make_manifest, job, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    manifest = make_manifest([(image, 0, "train") for image in pixels])
    cpu, gpu = (store_by(d, job, manifest, tmp_path / d / "saliency.zarr") for d in ("cpu", "cuda"))
    ids, alike = torch.arange(len(manifest)), []
    for level in CONFIG.levels:
        a, b = (store.activation(ids, level).float() for store in (cpu, gpu))
        assert ((a - b).abs() <= 1e-3 * a.abs().clamp(min=1)).all()  # float16 keeps no more
        alike.append((foreground(a) == foreground(b)).flatten())
    assert torch.cat(alike).float().mean() >= 0.999
