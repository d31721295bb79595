"""Geometry of views: torchvision's random resized crop and flips, image by image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from salmask.data import views
from salmask.params.view import ViewConfig
from salmask.randomness import Draws


class Scripted:
    """Replaces Draws by given random numbers for the areas, aspect ratios and corner of a crop."""

    def __init__(self, tries: list[list[float]], corner: list[float]) -> None:
        self.tries = torch.tensor([tries])
        self.place = torch.tensor([corner])

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        return self.place if purpose.endswith("corner") else self.tries


def reference_crop(tries, corner, height, width, crop, aspect):
    """RandomResizedCrop in pixels, unrounded: ten tries, then the largest central crop."""
    for share, turn in tries:
        area = height * width * (crop[0] + (crop[1] - crop[0]) * share)
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + (high - low) * turn)
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            y, x = corner[0] * (height - h), corner[1] * (width - w)
            return [y / height, x / width, h / height, w / width]
    if width / height < aspect[0]:
        w, h = width, width / aspect[0]
    elif width / height > aspect[1]:
        w, h = height * aspect[1], height
    else:
        w, h = width, height
    return [(height - h) / 2 / height, (width - w) / 2 / width, h / height, w / width]


UNIT = st.floats(0, 1, exclude_max=True, width=32)
SIZE = st.integers(8, 400)


@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=10, max_size=10),
    st.tuples(UNIT, UNIT),
    SIZE,
    SIZE,
    st.sampled_from([(0.2, 1.0), (0.08, 1.0), (0.9, 1.0), (1.0, 1.0)]),
    st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 0.5), (2.0, 3.0)]),
)
def test_crops_follow_random_resized_crop(tries, corner, height, width, crop, aspect):
    scripted = Scripted([list(t) for t in tries], list(corner))
    sizes = torch.tensor([[height, width]])
    result = views.crop_boxes(scripted, "query", sizes, crop, aspect)
    expected = reference_crop(tries, corner, height, width, crop, aspect)
    assert result[0].tolist() == pytest.approx(expected, abs=1e-5)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(SIZE, SIZE), min_size=1, max_size=8),
    st.floats(0.01, 1),
    st.floats(1, 3),
)
def test_boxes_lie_inside_the_image_and_in_their_ranges(seed, sizes, smallest, stretch):
    crop, aspect = (smallest, 1.0), (1 / stretch, stretch)
    sizes = torch.tensor(sizes)
    draws = Draws.of(seed, 0, torch.arange(len(sizes)))
    boxes = views.crop_boxes(draws, "query", sizes, crop, aspect)
    y, x, h, w = boxes.double().unbind(1)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (y + h <= 1 + 1e-6).all() and (x + w <= 1 + 1e-6).all()
    ratio = (w * sizes[:, 1]) / (h * sizes[:, 0])
    whole = ((h > 1 - 1e-6) & (w > 1 - 1e-6)) | ((ratio / stretch - 1).abs() < 1e-5)
    whole |= (ratio * stretch - 1).abs() < 1e-5
    central = ((y - (1 - h) / 2).abs() < 1e-6) & ((x - (1 - w) / 2).abs() < 1e-6)
    fallback = whole & central & ((h > 1 - 1e-6) | (w > 1 - 1e-6))
    assert (fallback | ((h * w > smallest - 1e-5) & (h * w < 1 + 1e-5))).all()
    inside = (ratio > 1 / stretch - 1e-4) & (ratio < stretch + 1e-4)
    assert (inside | fallback).all()


@pytest.mark.parametrize("size", [(20, 200), (200, 20)])
def test_the_fallback_is_torchvisions(size):
    height, width = size
    boxes = views.crop_boxes(
        Draws.of(0, 0, torch.arange(1)), "query", torch.tensor([size]), (0.9, 1.0), (0.75, 4 / 3)
    )
    i, j, h, w = RandomResizedCrop.get_params(
        torch.zeros(3, height, width), [0.9, 1.0], [0.75, 4 / 3]
    )
    result = boxes[0] * torch.tensor([height, width, height, width])
    torch.testing.assert_close(result, torch.tensor([i, j, h, w]).float(), atol=1.0, rtol=0)


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    height, width, count = 400, 600, 3000
    blank = torch.zeros(1, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [0.2, 1.0], [0.75, 4 / 3]) for _ in range(count)]
    ).double() / torch.tensor([height, width, height, width])
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    ours = views.crop_boxes(
        Draws.of(0, 0, torch.arange(count)), "query", sizes, (0.2, 1.0), (0.75, 4 / 3)
    ).double()
    for a, b in zip(
        (*ours.unbind(1), ours[:, 2] * ours[:, 3], ours[:, 2] / ours[:, 3]),
        (*theirs.unbind(1), theirs[:, 2] * theirs[:, 3], theirs[:, 2] / theirs[:, 3]),
        strict=True,
    ):
        error = b.std() * math.sqrt(2 / count)
        assert abs(a.mean() - b.mean()) < 4 * error + 0.002  # torchvision rounds to whole pixels
        assert (a.std() / b.std()).item() == pytest.approx(1, abs=0.08)


@given(st.integers(0, 100), st.integers(0, 100))
def test_geometry_depends_on_the_image_only(seed, epoch):
    ids = torch.tensor([4, 9, 2])
    sizes = torch.tensor([[30, 50], [60, 20], [40, 40]])
    config = ViewConfig()

    def of(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        draws = Draws.of(seed, epoch, ids[rows])
        boxes = views.crop_boxes(draws, "query", sizes[rows], config.crop, config.aspect)
        return boxes, views.flips(draws, "query", 0.5)

    together, apart = of([0, 1, 2]), of([2, 0])
    assert torch.equal(apart[0], together[0][[2, 0]])
    assert torch.equal(apart[1], together[1][[2, 0]])


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.2, 0.2)])
def test_flips_have_the_given_probability(probability, share):
    result = views.flips(Draws.of(0, 0, torch.arange(4000)), "query", probability)
    deviation = math.sqrt(share * (1 - share) / 4000)
    assert result.float().mean().item() == pytest.approx(share, abs=4 * deviation)


def test_the_two_views_of_an_image_are_independent():
    draws, sizes = Draws.of(0, 0, torch.arange(2000)), torch.tensor([[64, 64]]).expand(2000, 2)
    a, b = (
        views.crop_boxes(draws, view, sizes, (0.2, 1.0), (0.75, 4 / 3)) for view in ("query", "key")
    )
    for column in range(4):
        r = torch.corrcoef(torch.stack([a[:, column], b[:, column]]))[0, 1]
        assert abs(r) < 4 / math.sqrt(2000)


def test_views_and_epochs_have_different_boxes():
    ids, sizes = torch.arange(5), torch.tensor([[64, 96]]).expand(5, 2)
    config = ViewConfig(size=16, grid=4, crop=(0.3, 0.9))
    boxes = [views.view_geometry(sizes, config, 0, epoch, ids)[0] for epoch in (0, 1)]
    assert not torch.isclose(boxes[0]["query"], boxes[0]["key"]).all(1).any()
    assert not torch.isclose(boxes[0]["query"], boxes[1]["query"]).all(1).any()


def test_flip_images_flips_the_chosen_images_horizontally():
    images = torch.arange(8.0).view(2, 1, 2, 2)
    expected = torch.tensor([[[[1.0, 0], [3, 2]]], [[[4.0, 5], [6, 7]]]])
    assert torch.equal(views.flip_images(images, torch.tensor([True, False])), expected)
