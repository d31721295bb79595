import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from salmask.masks import fill


def test_mean_fill_by_hand():
    # red: 1, 2, 3, 6 -> 3; green: 0, 0, 0, 2 -> 0.5; the other image: 4s and -1s
    first = torch.tensor([[[1.0, 2], [3, 6]], [[0, 0], [0, 2]]])
    images = torch.stack([first, torch.stack([torch.full((2, 2), 4.0), -torch.ones(2, 2)])])
    expected = torch.tensor([[3.0, 0.5], [4.0, -1.0]])[:, :, None, None].expand(2, 2, 2, 2)
    torch.testing.assert_close(fill.mean_fill(images), expected)


def test_strong_blur_of_an_impulse_is_the_separable_kernel():
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 4] = 1
    blurred = fill.strong_blur(images, 3, 2.0)[0, 0]
    # taps exp(-1/8), 1, exp(-1/8) over their sum
    side = math.exp(-1 / 8)
    outer, centre = side / (1 + 2 * side), 1 / (1 + 2 * side)
    assert blurred[4, 4].item() == pytest.approx(centre * centre)
    assert blurred[3, 4].item() == blurred[4, 5].item() == pytest.approx(centre * outer)
    assert blurred[3, 3].item() == blurred[5, 3].item() == pytest.approx(outer * outer)
    assert blurred[2].abs().sum() == 0


def test_high_pass_is_the_view_minus_its_blur(generator):
    images = torch.randn(2, 3, 16, 16, generator=generator)
    expected = images - reference.gaussian_blur(images, [3, 3], [1.43, 1.43])
    torch.testing.assert_close(fill.high_pass(images, 3, 1.43), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("deviation", [0.14, 0.18])
def test_noise_has_its_deviation_and_no_mean(generator, deviation):
    grain = fill.gaussian_noise(torch.randn(4, 3, 64, 64, generator=generator), deviation)
    n = grain.numel()
    assert grain.std().item() == pytest.approx(deviation, abs=4 * deviation / math.sqrt(2 * n))
    assert abs(grain.mean()) < 4 * deviation / math.sqrt(n)


def test_every_image_may_have_its_own_deviation():
    deviation = torch.tensor([0.1, 2.0])[:, None, None, None]
    grain = fill.gaussian_noise(torch.ones(2, 3, 2, 2), deviation)
    assert torch.equal(grain, deviation.expand(2, 3, 2, 2))


@given(st.integers(0, 100), st.sampled_from([1, 3]))
def test_mix_takes_the_filled_where_masked_and_nothing_else(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    images, filled = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    masked = torch.rand(2, channels, 4, 5, generator=generator) < 0.5
    mixed = fill.mix(images, filled, masked)
    for b in range(2):
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    source = filled if masked[b, min(c, channels - 1), y, x] else images
                    assert mixed[b, c, y, x] == source[b, c, y, x]


@pytest.mark.parametrize(
    "apply",
    [
        fill.mean_fill,
        lambda x: fill.strong_blur(x, 3, 1.0),
        lambda x: fill.high_pass(x, 3, 1.0),
        lambda x: fill.gaussian_noise(x, 0.2),
        lambda x: fill.mix(x, x + 1, x > 0),
    ],
)
def test_fills_leave_their_input_alone_and_keep_its_shape(generator, apply):
    images = torch.randn(2, 3, 6, 6, generator=generator)
    before = images.clone()
    assert apply(images).shape == images.shape
    assert torch.equal(images, before)
