"""Maps of the same images on a CPU in float32, with other kernels, in float64, and on a GPU if
there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.backends import mkldnn

from salmask.params.saliency import SaliencyConfig
from salmask.saliency import maps
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore
from salmask.saliency.trunks import Localizer, Trunk

SPEC = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
CONFIG = SaliencyConfig(levels=(96, 128), correction=0, precision="float32", shard_rows=16, batch=8)


def found_by(device: str, job, manifest, path, kind=torch.float32) -> SaliencyStore:
    torch.manual_seed(0)
    trunk = Trunk(SPEC).to(device)
    device_job, plan = replace(job, device=torch.device(device)), maps.plan(manifest, CONFIG, SPEC)
    if kind == torch.float64:
        trunk.double().register_forward_pre_hook(lambda _, given: (given[0].double(),))
    assert maps.fill(path, plan, manifest, trunk, CONFIG, device_job)
    maps.finish(path, plan, manifest, trunk, CONFIG, device_job)
    return SaliencyStore.open(path)


@pytest.fixture
def manifest(make_manifest):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return make_manifest([(image, 0, "train") for image in pixels])


def check(a: SaliencyStore, b: SaliencyStore) -> int:
    """Checks that both agree within the documented limits; returns the number of cells that
    differ."""
    ids, alike, other = torch.arange(64), [], 0
    for level in CONFIG.levels:
        x, y = (store.activation(ids, level).float() for store in (a, b))
        assert ((x - y).abs() <= 1e-3 * x.abs().clamp(min=1)).all()  # float16 keeps no more
        alike.append((foreground(x) == foreground(y)).flatten())
        other += int((x != y).sum())
    assert torch.cat(alike).float().mean() >= 0.999
    return other


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_other_kernels_and_float64_give_the_maps_of_this_cpu(manifest, job, tmp_path):
    one = found_by("cpu", job, manifest, tmp_path / "one" / "saliency.zarr")
    with mkldnn.flags(enabled=False):
        other = found_by("cpu", job, manifest, tmp_path / "other" / "saliency.zarr")
    exact = found_by("cpu", job, manifest, tmp_path / "exact" / "saliency.zarr", torch.float64)
    assert check(one, other) > 0  # other kernels, so some bits differ
    assert check(one, exact) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_maps_of_a_cpu(manifest, job, tmp_path):
    cpu, gpu = (found_by(d, job, manifest, tmp_path / d / "saliency.zarr") for d in ("cpu", "cuda"))
    check(cpu, gpu)
