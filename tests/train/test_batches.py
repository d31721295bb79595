"""From crops to masked views, on a CPU in pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor

from salmask import pieces
from salmask.data.loader import Crops
from salmask.data.views import branch_names
from salmask.masks import MASKS
from salmask.masks.wiring import wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Wiring
from salmask.train.batches import make_batch

MOCO = Wiring("moco", "moco v2", hard_negatives=True)
SIDE, BATCH = 32, 8
CHANCES = {"jitter_p": 0.5, "gray_p": 0.5, "blur_p": 0.5, "solarize_p": 0.5}


def masked_views(mask: str) -> list[Tensor]:
    """All views of a batch, with each change of colours in about half of the images."""
    config = RunConfig(
        name="pieces",
        encoder=EncoderConfig(),
        view=ViewConfig(size=SIDE, grid=4, **CHANCES),
        mask=Choice(mask, {}),
        framework=Choice("moco", {}),
        train=TrainConfig(batch=BATCH),
    )
    torch.manual_seed(0)  # weights of a learned mask
    wired = wire_mask(config.mask, MOCO, config.view)
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 3, SIDE, SIDE)
    parts: list[dict[str, Any]] = [{}, {}, {}]
    for branch in branch_names(wired.extra_views):
        parts[0][branch] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        parts[1][branch] = torch.tensor([0.2, 0.2, 0.6, 0.6]).expand(BATCH, 4)
        parts[2][branch] = torch.arange(BATCH) % 2 == 0
    store = SaliencyStore({}, {224: torch.rand(BATCH, 7, 7, generator=generator)})
    crops = Crops(0, 0, torch.arange(BATCH), *parts)
    views = make_batch(crops, config, 0, store).views(wired)
    negatives = [image for images in views.negatives.values() for image in images]
    return [*views.images, *negatives, *(mixed.images for mixed in views.mixed)]


@pytest.mark.parametrize("mask", MASKS)
def test_views_are_equal_for_any_size_of_pieces(monkeypatch, mask):
    together = masked_views(mask)
    for images in (1, 3):
        monkeypatch.setattr(pieces, "PIECE", images * 3 * SIDE * SIDE)
        for view, same in zip(masked_views(mask), together, strict=True):
            assert view.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(view, same, atol=1e-5, rtol=0)
