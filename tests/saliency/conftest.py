"""Pieces that several tests of saliency share."""

import pytest
import torch

from salmask.saliency.correction import Correction


@pytest.fixture(scope="session")
def drawn_correction() -> Correction:
    """A correction of two levels that nobody fitted: all its weights are drawn, and none is 0."""
    generator = torch.Generator().manual_seed(0)
    correction = Correction(2).eval().requires_grad_(False)
    for weight in correction.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return correction
