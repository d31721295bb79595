"""Fixtures for the tests of saliency."""

import pytest
import torch

from salmask.saliency import store
from salmask.saliency.correction import Correction
from tests.helpers.small_store import CORRECTED, PLAN, compute, fill


@pytest.fixture(scope="session")
def drawn_correction() -> Correction:
    """An unfitted correction of two levels: all its weights are random, and none is 0."""
    generator = torch.Generator().manual_seed(0)
    correction = Correction(2).eval().requires_grad_(False)
    for weight in correction.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return correction


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saliency" / "saliency.zarr"


@pytest.fixture
def filled(path):
    fill(path, PLAN, compute)
    return path


@pytest.fixture
def corrected(path, drawn_correction):
    fill(path, CORRECTED, compute)
    store.write_correction(path, drawn_correction)
    return path
