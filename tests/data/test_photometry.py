"""Photometry of views: torchvision's adjustments, with their probabilities."""

import colorsys
import hashlib
import math
import random
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from salmask.data import photometry
from salmask.data.photometry import apply_photometry, jitter, luma, shift_hue, solarize
from salmask.filters import gaussian_blur
from salmask.params.values import check
from salmask.params.view import ViewConfig
from salmask.randomness import Draws

CHANCE = st.sampled_from([0.0, 0.3, 1.0])
PIECES = ("jitter_p", "gray_p", "blur_p", "solarize_p")


@pytest.fixture
def images(generator) -> torch.Tensor:
    return torch.rand(4, 3, 9, 11, generator=generator)


@pytest.mark.parametrize(
    ("piece", "adjust"),
    [
        (0, reference.adjust_brightness),
        (1, reference.adjust_contrast),
        (2, reference.adjust_saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
@pytest.mark.parametrize("strength", [0.4, 0.8, 1.5])
def test_each_jitter_is_torchvisions(images, piece, adjust, strength):
    u = torch.full((4, 4), 0.5)
    u[:, piece] = torch.tensor([0.0, 0.3, 0.7, 0.999])
    strengths = [0.0] * 4
    strengths[piece] = strength
    result = jitter(images, u, tuple(strengths))
    low, high = max(0.0, 1 - strength), 1 + strength
    for i in range(4):
        expected = adjust(images[i], low + (high - low) * u[i, piece].item())
        torch.testing.assert_close(
            result[i], expected, atol=1e-3, rtol=0
        )  # torchvision rounds the luma


def test_the_whole_jitter_runs_in_torchvisions_default_order(images):
    u = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    result = jitter(images, u, (0.4, 0.4, 0.4, 0.1))
    for i in range(4):
        factors = [0.6 + 0.8 * u[i, j].item() for j in range(3)]
        expected = reference.adjust_brightness(images[i], factors[0])
        expected = reference.adjust_contrast(expected, factors[1])
        expected = reference.adjust_saturation(expected, factors[2])
        expected = reference.adjust_hue(expected, 0.2 * u[i, 3].item() - 0.1)
        torch.testing.assert_close(result[i], expected, atol=3e-3, rtol=0)


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.25, 0.5, -0.5, 0.9])
def test_hue_turns_as_in_colorsys(turns):
    dice = random.Random(0)
    colours = [[dice.random() for _ in range(3)] for _ in range(60)]
    colours += [[0.0] * 3, [1.0] * 3, [0.5] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    pixels = torch.tensor(colours, dtype=torch.float32).T.reshape(1, 3, 1, -1)
    result = shift_hue(pixels, torch.tensor([turns]))[0, :, 0].T
    for colour, ours in zip(colours, result.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert ours == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("turns", [0.1, -0.25, 0.5])
def test_hue_turns_as_in_torchvision(images, turns):
    result = shift_hue(images, torch.full((4,), turns))
    torch.testing.assert_close(result, reference.adjust_hue(images, turns), atol=1e-4, rtol=0)


def test_luma_by_hand():
    # 0.299 * 1 + 0.587 * 0.5 + 0.114 * 0 = 0.5925
    pixel = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(luma(pixel), torch.tensor([[[[0.5925]]]]))


@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_photometric_blur_is_torchvisions(generator, sigma):
    config = ViewConfig(size=16, grid=4, jitter_p=0, gray_p=0, blur_p=1, blur_sigma=(sigma, sigma))
    images = torch.rand(3, 3, 16, 16, generator=generator)
    result = apply_photometry(images, Draws.of(0, 0, torch.arange(3)), "query", config)
    reach = math.ceil(3 * sigma)  # three deviations each way
    expected = reference.gaussian_blur(images, [2 * reach + 1] * 2, [sigma, sigma])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_a_blur_wider_than_the_view_still_works(generator):
    config = ViewConfig(size=4, grid=4, jitter_p=0, gray_p=0, blur_p=1, blur_sigma=(5.0, 5.0))
    images = torch.rand(1, 3, 4, 4, generator=generator)
    result = apply_photometry(images, Draws.of(0, 0, torch.arange(1)), "query", config)
    assert result.isfinite().all()


def test_photometry_with_all_chances_off_is_the_identity(generator):
    config = ViewConfig(size=16, grid=4, jitter_p=0, gray_p=0, blur_p=0)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    draws = Draws.of(0, 0, torch.arange(3))
    assert torch.equal(apply_photometry(images, draws, "query", config), images)


def test_grayscale_is_luma_in_every_channel(generator):
    config = ViewConfig(size=8, grid=4, jitter_p=0, gray_p=1, blur_p=0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    result = apply_photometry(images, Draws.of(0, 0, torch.arange(2)), "query", config)
    expected = reference.rgb_to_grayscale(images, 3)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("column", "piece"), list(enumerate(PIECES)))
def test_changes_are_independent_and_have_their_probabilities(column, piece):
    chances = dict.fromkeys(PIECES, 0.0) | {piece: 0.3}
    config = ViewConfig(size=8, grid=4, blur_sigma=(1.0, 1.0), **chances)
    images, draws = torch.rand(1, 3, 8, 8).expand(1000, 3, 8, 8), Draws.of(0, 0, torch.arange(1000))
    changed = (apply_photometry(images, draws, "query", config) != images).flatten(1).any(1)
    assert torch.equal(changed, draws.uniform("query.chances", 4)[:, column] < 0.3)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 1000))


@given(st.integers(0, 100))
def test_photometry_depends_on_the_image_only(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(5, 3, 8, 8, generator=generator)
    ids, config = torch.tensor([8, 3, 5, 1, 0]), ViewConfig(size=8, grid=4)
    together = apply_photometry(images, Draws.of(seed, 1, ids), "key", config)
    for rows in ([3], [4, 0, 2]):
        apart = apply_photometry(images[rows], Draws.of(seed, 1, ids[rows]), "key", config)
        torch.testing.assert_close(apart, together[rows], atol=1e-6, rtol=0)


@given(st.integers(0, 100))
def test_photometry_stays_between_zero_and_one(seed):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    config = ViewConfig(size=8, grid=4, jitter=(1.0, 1.0, 1.0, 0.5), jitter_p=1, solarize_p=0.5)
    result = apply_photometry(images, Draws.of(seed, 0, torch.arange(4)), "query", config)
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6


# ------------------------------------------------------------------------------- view by view


def test_solarization_by_hand():
    pixels = torch.tensor([0.0, 0.25, 127 / 255, 0.5, 128 / 255, 0.75, 1.0])
    expected = torch.tensor([0.0, 0.25, 127 / 255, 0.5, 127 / 255, 0.25, 0.0])
    torch.testing.assert_close(solarize(pixels), expected)


def test_solarization_is_torchvisions_of_128():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    torch.testing.assert_close(solarize(levels / 255), reference.solarize(levels, 128) / 255)


def test_solarization_comes_after_the_blur(images):
    config = ViewConfig(size=9, grid=3, jitter_p=0, gray_p=0, blur_p=1, blur_sigma=(1.0, 1.0))
    draws = Draws.of(0, 0, torch.arange(4))
    blurred = apply_photometry(images, draws, "query", config)
    result = apply_photometry(images, draws, "query", replace(config, solarize_p=1.0))
    assert torch.equal(result, torch.where(blurred >= 0.5, 1 - blurred, blurred))


def before_solarization(images, draws, view, config):
    """Photometry without solarization."""
    chance = draws.uniform(f"{view}.chances", 3)[..., None, None, None]
    jittered = jitter(images, draws.uniform(f"{view}.jitter", 4), config.jitter)
    images = torch.where(chance[:, 0] < config.jitter_p, jittered, images)
    gray = luma(images).expand_as(images)
    images = torch.where(chance[:, 1] < config.gray_p, gray, images)
    if config.blur_p > 0:
        low, high = config.blur_sigma
        sigma = low + (high - low) * draws.uniform(f"{view}.blur", 1)[:, 0]
        reach = min(int(3 * high + 0.999), config.size - 1)
        blurred = gaussian_blur(images, 2 * reach + 1, sigma)
        images = torch.where(chance[:, 2] < config.blur_p, blurred, images)
    return images


@given(st.integers(0, 1000), st.sampled_from(["query", "key"]), CHANCE, CHANCE, CHANCE)
def test_without_solarization_the_result_is_the_same(seed, view, jitter_p, gray_p, blur_p):
    config = ViewConfig(size=8, grid=4, jitter_p=jitter_p, gray_p=gray_p, blur_p=blur_p)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    draws = Draws.of(seed, 1, torch.arange(6))
    expected = before_solarization(images, draws, view, config)
    for same in (config, replace(config, blur_p=(blur_p, blur_p), solarize_p=(0.0, 0.0))):
        assert torch.equal(apply_photometry(images, draws, view, same), expected)


def test_without_solarization_views_have_the_digest_they_had():
    """With brightness and grayscale only, whose results are equal on every processor."""
    config = ViewConfig(size=16, grid=4, jitter=(0.4, 0.0, 0.0, 0.0), blur_p=0.0)
    pixels = (torch.arange(24 * 3 * 16 * 16) * 2654435761 % 256).reshape(24, 3, 16, 16) / 255
    digest = hashlib.sha256()
    for view in ("query", "key", "extra1"):
        result = apply_photometry(pixels, Draws.of(3, 1, torch.arange(24)), view, config)
        digest.update(result.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == "dfd42adb0a686b06"


# the published augmentation of each framework, where it differs from the default
PUBLISHED = """
mocov1: {crop: [0.2, 1.0], jitter: [0.4, 0.4, 0.4, 0.4], jitter_p: 1, gray_p: 0.2, blur_p: 0}
mocov2: {crop: [0.2, 1.0], jitter: [0.4, 0.4, 0.4, 0.1], jitter_p: 0.8, gray_p: 0.2, blur_p: 0.5}
simclr: {crop: [0.08, 1], jitter: [0.8, 0.8, 0.8, 0.2], jitter_p: 0.8, gray_p: 0.2, blur_p: 0.5}
byol: {crop: [0.08, 1], jitter: [0.4, 0.4, 0.2, 0.1], jitter_p: 0.8, gray_p: 0.2,
       blur_p: [1.0, 0.1], solarize_p: [0, 0.2]}
cifar: {crop: [0.08, 1], jitter: [0.4, 0.4, 0.4, 0.1], blur_p: 0, size: 32, grid: 4}
"""
# shares of jittered, gray, blurred and solarized images; of byol, in the query and in the key
SHARES = {
    "mocov1": [(1.0, 0.2, 0.0, 0.0)],
    "mocov2": [(0.8, 0.2, 0.5, 0.0)],
    "simclr": [(0.8, 0.2, 0.5, 0.0)],
    "byol": [(0.8, 0.2, 1.0, 0.0), (0.8, 0.2, 0.1, 0.2)],
    "cifar": [(0.8, 0.2, 0.0, 0.0)],
}


@pytest.mark.parametrize("name", SHARES)
def test_published_augmentations_have_their_probabilities(name):
    config = check(yaml.safe_load(PUBLISHED)[name], ViewConfig, "view")
    assert config.crop == (0.2 if name.startswith("moco") else 0.08, 1.0)
    assert (config.flip, config.blur_sigma) == (0.5, (0.1, 2.0))
    draws = Draws.of(0, 0, torch.arange(600))
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(600, 3, 8, 8)
    for view, row in (("query", 0), ("key", -1), ("extra1", 0)):
        for piece, share in zip(PIECES, SHARES[name][row], strict=True):
            alone = dict.fromkeys(PIECES, 0.0) | {piece: getattr(config, piece)}
            alone |= {
                "size": 8,
                "grid": 4,
                "blur_sigma": (1.0, 1.0),
            }  # a blur of 0.1 px changes nothing
            result = apply_photometry(images, draws, view, replace(config, **alone))
            changed = (result != images).flatten(1).any(1).float().mean().item()
            near = 4 * math.sqrt(share * (1 - share) / 600)
            assert changed == pytest.approx(share, abs=near), (view, piece)


def test_a_change_of_probability_0_is_not_computed(monkeypatch, images):
    config = ViewConfig(jitter_p=0, gray_p=0, blur_p=(0.5, 0.0), solarize_p=(0.5, 0.0))
    for piece in ("jitter", "luma", "gaussian_blur", "solarize"):
        monkeypatch.delattr(photometry, piece)
    result = apply_photometry(images, Draws.of(0, 0, torch.arange(4)), "key", config)
    assert torch.equal(result, images)
