import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.masks.where import (
    balanced_patches,
    random_patches,
    salient_patches,
    to_pixels,
    window,
)


@st.composite
def scenes(draw):
    """Foregrounds (B,U,V), full and empty ones included, and noise of any grid."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    share = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])[
        torch.randint(5, shape[:1], generator=generator)
    ]
    foreground = torch.rand(shape, generator=generator) < share[:, None, None]
    ratio = torch.rand(shape[:1], generator=generator)
    return foreground, ratio, torch.rand(shape, generator=generator)


def _first(count: int, rows: int, columns: int) -> torch.Tensor:
    """(1, rows, columns) bool, True in the first `count` cells."""
    return (torch.arange(rows * columns) < count).view(1, rows, columns)


@pytest.mark.parametrize(
    ("foreground", "ratio", "inside", "outside"),
    [
        # of 16 patches; foreground F, then round(ratio*F) inside, round(ratio*16) - that outside
        (6, 0.25, 2, 2),  # 1.5 -> 2 (half to even); 4 - 2
        (2, 0.25, 0, 4),  # 0.5 -> 0 (half to even)
        (10, 0.25, 2, 2),  # 2.5 -> 2 (half to even)
        (14, 0.25, 4, 0),  # 3.5 -> 4 (half to even)
        (8, 0.5, 4, 4),
        (16, 0.25, 4, 0),  # all foreground
        (0, 0.25, 0, 4),  # no foreground
        (1, 0.25, 0, 4),  # 0.25 -> 0: one patch in the group
        (1, 0.75, 1, 11),  # 0.75 -> 1
        (15, 0.75, 11, 1),  # 11.25 -> 11; the one background patch
        (15, 0.9375, 14, 1),  # 14.06 -> 14; 15 - 14
        (6, 0.0, 0, 0),
        (6, 1.0, 6, 10),
        (6, 0.03125, 0, 0),  # 0.1875 -> 0; 0.5 -> 0 (half to even)
        (6, 0.09375, 1, 1),  # 0.5625 -> 1; 1.5 -> 2
    ],
)
def test_balanced_counts_by_hand(generator, foreground, ratio, inside, outside):
    where = _first(foreground, 4, 4)
    masked = balanced_patches(
        where, torch.tensor([ratio]), torch.rand(1, 4, 4, generator=generator)
    )
    assert (masked & where).sum() == inside
    assert (masked & ~where).sum() == outside


@pytest.mark.parametrize(
    ("foreground", "count", "masked"),
    [(6, 4, 4), (6, 9, 6), (0, 3, 0), (1, 1, 1), (1, 0, 0), (16, 16, 16), (16, 99, 16)],
)
def test_salient_counts_by_hand(generator, foreground, count, masked):
    where = _first(foreground, 4, 4)
    noise = torch.rand(1, 4, 4, generator=generator)
    values = salient_patches(where, torch.tensor([count]), noise)
    assert values.sum() == masked
    assert not (values & ~where).any()


def test_the_patches_of_smallest_noise_are_taken():
    noise = torch.tensor([[[0.9, 0.1, 0.5], [0.3, 0.2, 0.8]]])
    foreground = torch.tensor([[[True, True, True], [False, False, False]]])
    # 0.5 * 3 = 1.5 -> 2 in the foreground: 0.1 and 0.5; 0.5 * 6 - 2 = 1 outside: 0.2
    expected = torch.tensor([[[False, True, True], [False, True, False]]])
    assert torch.equal(balanced_patches(foreground, torch.tensor([0.5]), noise), expected)
    expected = torch.tensor([[[False, True, False], [False, False, False]]])
    assert torch.equal(salient_patches(foreground, torch.tensor([1]), noise), expected)
    expected = torch.tensor([[[False, True, False], [True, True, False]]])
    assert torch.equal(random_patches(torch.tensor([0.5]), noise), expected)


@given(scenes())
def test_balanced_masks_have_exact_counts(scene):
    foreground, ratio, noise = scene
    masked = balanced_patches(foreground, ratio, noise)
    for where, share, mask in zip(foreground, ratio, masked, strict=True):
        inside = round((share * where.sum()).item())
        assert (mask & where).sum() == inside
        assert mask.sum() == round((share * where.numel()).item())


@given(scenes(), st.integers(0, 60))
def test_salient_masks_have_exact_counts_inside_the_foreground(scene, count):
    foreground, _, noise = scene
    masked = salient_patches(foreground, torch.full((len(foreground),), count), noise)
    assert not (masked & ~foreground).any()
    for where, mask in zip(foreground, masked, strict=True):
        assert mask.sum() == min(count, int(where.sum()))


@given(scenes())
def test_random_masks_have_exact_counts(scene):
    _, ratio, noise = scene
    for share, mask in zip(ratio, random_patches(ratio, noise), strict=True):
        assert mask.sum() == round((share * mask.numel()).item())


@given(scenes(), st.randoms())
def test_a_mask_does_not_depend_on_its_batch(scene, shuffler):
    foreground, ratio, noise = scene
    order = list(range(len(foreground)))
    shuffler.shuffle(order)
    count = (ratio * 10).long()
    calls = (
        lambda i: balanced_patches(foreground[i], ratio[i], noise[i]),
        lambda i: salient_patches(foreground[i], count[i], noise[i]),
        lambda i: random_patches(ratio[i], noise[i]),
    )
    for call in calls:
        together = call(slice(None))
        assert torch.equal(call(order), together[order])
        assert torch.equal(call(order[:1]), together[order[:1]])


def test_every_patch_of_a_group_is_as_likely(generator):
    foreground = _first(6, 4, 4).expand(4000, 4, 4)
    noise = torch.rand(4000, 4, 4, generator=generator)
    share = balanced_patches(foreground, torch.full((4000,), 0.5), noise).float().mean(0).flatten()
    # 3 of 6 and 5 of 10; the deviation of a share is sqrt(.25 / 4000) = 0.008
    torch.testing.assert_close(share, torch.full((16,), 0.5), atol=0.032, rtol=0)


def test_patches_become_blocks_of_pixels():
    patches = torch.tensor([[[True, False], [False, True]]])
    expected = torch.tensor(
        [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]], dtype=torch.bool
    )
    assert torch.equal(to_pixels(patches, 4), expected)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_a_pixel_belongs_to_the_patch_over_its_corner(rows: int, columns: int, data) -> None:
    """Whether the grid divides the side or not; patches differ by a pixel at most."""
    side = data.draw(st.integers(max(rows, columns), 25))
    patches = torch.rand(2, 3, rows, columns) < 0.5
    pixels = to_pixels(patches, side)
    assert pixels.shape == (2, 3, side, side) and pixels.dtype == torch.bool
    for y in range(side):
        for x in range(side):
            # the patch [v * side / rows, (v + 1) * side / rows) that contains y, in integers
            (v,) = (v for v in range(rows) if v * side <= y * rows < (v + 1) * side)
            (u,) = (u for u in range(columns) if u * side <= x * columns < (u + 1) * side)
            assert torch.equal(pixels[..., y, x], patches[..., v, u])


def test_seven_patches_on_sixteen_pixels_by_hand() -> None:
    # patches start at 0, 2.3, 4.6, 6.9, 9.1, 11.4, 13.7 px
    pixels = to_pixels(torch.arange(7)[None].expand(7, 7), 16)
    expected = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    assert torch.equal(pixels, torch.tensor([expected] * 16))


def test_a_grid_may_be_oblong():
    pixels = to_pixels(torch.tensor([[True, False, False, False]]), 4)
    assert torch.equal(pixels, torch.tensor([[True, False, False, False]] * 4))


@pytest.mark.parametrize(
    ("noise", "top", "left"),
    [((0.0, 0.0), 0, 0), ((0.999, 0.999), 3, 3), ((0.3, 0.6), 1, 2), ((0.25, 0.249), 1, 0)],
)
def test_a_window_lies_where_its_noise_says(noise, top, left):
    # a window of 5 px in 8: four places, each a quarter of the noise
    inside = window(torch.tensor([noise]), 5, 8)
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    expected[..., top : top + 5, left : left + 5] = True
    assert torch.equal(inside, expected)


@given(st.integers(1, 40), st.data())
def test_windows_lie_whole_inside_the_view(side, data):
    size = data.draw(st.integers(1, side))
    noise = data.draw(st.floats(0, 1, exclude_max=True, width=32))
    inside = window(torch.tensor([[noise, 0.999999]]), size, side)
    assert inside.sum() == size**2
