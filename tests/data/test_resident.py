"""Images on the device, and their crops."""

import numpy as np
import pytest
import torch

from salmask.data import resident as resident_module
from salmask.data.resident import ResidentImages
from salmask.errors import UserError

CPU = torch.device("cpu")


def _resident(make_manifest, images) -> ResidentImages:
    manifest = make_manifest([(pixels, 0, "train") for pixels in images])
    return ResidentImages(manifest, manifest.ids("train"), CPU)


def test_the_whole_of_a_resident_image_at_its_size_is_the_image(make_manifest):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(3)]
    resident = _resident(make_manifest, pixels)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    crops = resident.crop(torch.tensor([2, 0]), box, 12)
    expected = torch.from_numpy(np.stack([pixels[2], pixels[0]])).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(crops, expected, atol=1e-3, rtol=0)


def test_shrinking_a_resident_image_averages_every_pixel(make_manifest):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    resident = _resident(make_manifest, [pixels])
    crops = resident.crop(torch.tensor([0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 4)
    blocks = pixels.reshape(4, 6, 4, 6, 3).mean(axis=(1, 3))  # each pixel is the mean of 6 x 6
    expected = torch.from_numpy(blocks).permute(2, 0, 1).float()
    torch.testing.assert_close(crops[0], expected, atol=1e-2, rtol=0)


def test_a_small_image_beside_a_large_one_keeps_its_border(make_manifest):
    white = [np.full((n, n, 3), 255, np.uint8) for n in (10, 20)]
    crops = _resident(make_manifest, white).crop(
        torch.tensor([0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 20
    )
    torch.testing.assert_close(crops, torch.full((1, 3, 20, 20), 255.0))


def test_images_of_all_sizes_are_cropped_as_each_alone(make_manifest, monkeypatch):
    rng = np.random.default_rng(0)
    sizes = [(9, 30), (40, 12), (12, 12), (30, 9)]
    pixels = [rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in sizes]
    resident = _resident(make_manifest, pixels)
    assert resident.pixels.numel() == 3 * sum(h * w for h, w in sizes)
    box = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    alone = [resident.crop(torch.tensor([i]), box[i : i + 1], 8) for i in range(4)]
    together = resident.crop(torch.arange(4), box, 8)
    assert torch.equal(together, torch.cat(alone))
    monkeypatch.setattr(resident_module, "_CANVAS", 40 * 40 + 1)
    assert torch.equal(resident.crop(torch.arange(4), box, 8), together)


def test_images_that_do_not_fit_are_refused_before_any_is_read(make_manifest, monkeypatch):
    monkeypatch.setattr(resident_module, "free_memory", lambda device: 100)
    monkeypatch.setattr(resident_module, "read_image", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"need 0\.0 GB, but cpu has .* free; set `images: auto`"):
        _resident(make_manifest, [np.zeros((10, 10, 3), np.uint8)])
