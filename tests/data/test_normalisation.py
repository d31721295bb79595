"""Normalisation by the statistics of channels."""

import torch
from torchvision.transforms import functional as reference

from salmask.data.normalisation import normalise


def test_normalisation_is_torchvisions(generator: torch.Generator) -> None:
    images = torch.rand(4, 3, 9, 11, generator=generator)
    expected = reference.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(images), expected)
