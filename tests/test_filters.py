import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from salmask.filters import gaussian_blur, high_pass, scaled, scaled_kernel


@pytest.mark.parametrize(
    ("kernel", "sigma", "side", "expected_kernel", "expected_sigma"),
    [
        (11, 5.0, 224, 11, 5.0),
        (31, 10.0, 224, 31, 10.0),
        # 11 * 64/224 = 3.14, the nearest odd number is 3; 5 * 64/224 = 1.4286
        (11, 5.0, 64, 3, 1.4286),
        # 31 * 64/224 = 8.857 -> 9; 10 * 64/224 = 2.857
        (31, 10.0, 64, 9, 2.8571),
        # 11 * 32/224 = 1.57 -> never below 3
        (11, 5.0, 32, 3, 0.7143),
        # 31 * 32/224 = 4.43 -> 5
        (31, 10.0, 32, 5, 1.4286),
        # 31 * 96/224 = 13.29 -> 13
        (31, 10.0, 96, 13, 4.2857),
    ],
)
def test_pixel_constants_scale_with_the_view(kernel, sigma, side, expected_kernel, expected_sigma):
    assert scaled_kernel(kernel, side) == expected_kernel
    assert scaled(sigma, side) == pytest.approx(expected_sigma, abs=1e-4)


@given(st.integers(1, 101), st.integers(8, 512))
def test_a_scaled_kernel_is_the_nearest_odd_number(size, side):
    kernel = scaled_kernel(size, side)
    assert kernel % 2 == 1
    assert kernel == 3 or abs(kernel - size * side / 224) <= 1


def test_an_impulse_becomes_the_separable_kernel():
    images = torch.zeros(1, 1, 11, 11)
    images[0, 0, 5, 5] = 1
    blurred = gaussian_blur(images, kernel=5, sigma=1.5)[0, 0]
    # one dimension: exp(-d^2 / (2 * 1.5^2)) at d = -2..2, divided by its sum
    line = [math.exp(-(d**2) / 4.5) for d in (-2, -1, 0, 1, 2)]
    line = [tap / sum(line) for tap in line]
    for y in range(11):
        for x in range(11):
            inside = abs(y - 5) <= 2 and abs(x - 5) <= 2
            expected = line[y - 3] * line[x - 3] if inside else 0
            assert blurred[y, x].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.5), (5, 1.43), (9, 2.86), (31, 10.0)])
def test_blur_agrees_with_torchvision(generator, kernel, sigma):
    images = torch.randn(2, 3, 20, 33, generator=generator)
    expected = reference.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(images, kernel, sigma), expected, atol=1e-5, rtol=1e-5)


def test_every_image_may_have_its_own_sigma(generator):
    images = torch.randn(3, 3, 12, 12, generator=generator)
    sigmas = torch.tensor([0.3, 1.0, 4.0])
    together = gaussian_blur(images, 7, sigmas)
    for i, sigma in enumerate(sigmas.tolist()):
        alone = gaussian_blur(images[i : i + 1], 7, sigma)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_high_pass_is_the_image_minus_its_blur(generator):
    images = torch.randn(2, 3, 16, 16, generator=generator)
    expected = images - reference.gaussian_blur(images, [5, 5], [1.4, 1.4])
    torch.testing.assert_close(high_pass(images, 5, 1.4), expected, atol=1e-5, rtol=1e-5)


def test_a_constant_image_blurs_to_itself_and_has_no_high_pass():
    images = torch.full((1, 3, 10, 10), 0.7)
    torch.testing.assert_close(gaussian_blur(images, 9, 3.0), images)
    torch.testing.assert_close(high_pass(images, 9, 3.0), torch.zeros_like(images))


@pytest.mark.parametrize(("kernel", "side"), [(4, 16), (17, 8), (33, 16)])
def test_a_kernel_that_does_not_fit_is_refused(kernel, side):
    with pytest.raises(ValueError, match=rf"{kernel} px.*{side}x{side}.*at most {2 * side - 1}"):
        gaussian_blur(torch.zeros(1, 3, side, side), kernel, 1.0)


def test_the_largest_kernel_that_fits_is_accepted(generator):
    images = torch.randn(1, 3, 8, 8, generator=generator)
    expected = reference.gaussian_blur(images, [15, 15], [2.0, 2.0])
    torch.testing.assert_close(gaussian_blur(images, 15, 2.0), expected, atol=1e-5, rtol=1e-5)
