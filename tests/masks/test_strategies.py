import pytest
import torch
from torchvision.transforms import functional as reference

from salmask.config import Choice
from salmask.errors import UserError
from salmask.masks import strategies
from salmask.randomness import Draws
from salmask.saliency.scda import foreground
from salmask.shapes import Pair

SIDE, GRID, BATCH = 64, 8, 12
PATCH = SIDE // GRID
FILLS = ["blur", "mean"]
ALL = ["none", "blur", "mean", "high_pass"]


@pytest.fixture
def pair(generator) -> Pair:
    """Views of noise with blobs of activation, other ones for the key than for the query."""
    query, key = (torch.randn(BATCH, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    maps = [torch.rand(BATCH, GRID, GRID, generator=generator) ** 3 for _ in range(2)]
    return Pair(query, key, *maps)


def apply(name: str, pair: Pair, **options):
    draws = Draws.of(0, 0, torch.arange(BATCH))
    return strategies.build(Choice(name, options))(pair, draws, GRID)


def changed_patches(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Which patches differ, per channel: (B,3,U,V) bool. A patch is masked whole or not at all."""
    pixels = (before != after).unflatten(2, (GRID, PATCH)).unflatten(4, (GRID, PATCH))
    cells = pixels.permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert torch.equal(cells.any(-1), cells.all(-1))
    return cells.any(-1)


def high_passed(images: torch.Tensor) -> torch.Tensor:
    """11 / 5.0 at 224 px are 3 / 1.43 at 64 px."""
    sigma = 5 * 64 / 224
    return images - reference.gaussian_blur(images, [3, 3], [sigma, sigma])


def filled(name: str, images: torch.Tensor) -> torch.Tensor:
    if name == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    sigma = 10 * 64 / 224  # 31 / 10.0 at 224 px are 9 / 2.86 at 64 px
    return reference.gaussian_blur(images, [9, 9], [sigma, sigma])


def test_none_changes_nothing(pair):
    query, key, negative = apply("none", pair)
    assert query is pair.query and key is pair.key and negative is None


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("ratio", [0.15, 0.25, 0.5])
def test_the_query_is_masked_in_proportion_and_filled(pair, name, ratio):
    query, key, _ = apply(name, pair, ratio=(ratio, ratio))
    assert torch.equal(key, pair.key)
    masked = changed_patches(pair.query, query)
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    where = foreground(pair.query_activation)
    for one, salient in zip(masked[:, 0], where, strict=True):
        inside = round((torch.tensor(ratio) * salient.sum()).item())
        assert (one & salient).sum() == inside
        assert one.sum() == round(ratio * GRID * GRID)
    pixels = masked.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    wanted = torch.where(pixels, filled(name, pair.query), pair.query)
    torch.testing.assert_close(query, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FILLS)
def test_the_hard_negative_is_the_key_view_without_its_foreground(pair, name):
    _, _, negative = apply(name, pair, hard_negative={"ratio": (0.5, 0.5)})
    masked = changed_patches(pair.key, negative)
    where = foreground(pair.key_activation)
    assert not (masked[:, 0] & ~where).any()
    wanted = torch.tensor([round(0.5 * int(n)) for n in where.sum((1, 2))])
    assert torch.equal(masked[:, 0].sum((1, 2)), wanted)
    pixels = masked.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    wanted = torch.where(pixels, filled(name, pair.key), pair.key)
    torch.testing.assert_close(negative, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*FILLS, "high_pass"])
def test_the_hard_negative_can_be_switched_off(pair, name):
    with_it = apply(name, pair)
    without = apply(name, pair, hard_negative=None)
    assert without[2] is None
    assert torch.equal(without[0], with_it[0])
    assert torch.equal(without[1], with_it[1])


@pytest.mark.parametrize("name", [*FILLS, "high_pass"])
def test_ratios_are_drawn_per_image_within_their_bounds(pair, name):
    options = {"focal": 0.0, "channel": 0.0} if name == "high_pass" else {}
    query, _, negative = apply(name, pair, **options)
    before = [high_passed(v) for v in (pair.query, pair.key)] if options else [pair.query, pair.key]
    views = (query, negative)
    masked = [
        (b - v).abs().amax(1).unflatten(1, (GRID, PATCH)).unflatten(3, (GRID, PATCH)).amax((2, 4))
        > 1e-3
        for b, v in zip(before, views, strict=True)
    ]
    share = masked[0].float().mean((1, 2))
    assert (share >= round(0.05 * 64) / 64).all() and (share <= round(0.25 * 64) / 64).all()
    assert len(share.unique()) > 2
    where = foreground(pair.key_activation)
    beta = masked[1].sum((1, 2)) / where.sum((1, 2))
    slack = 0.5 / where.sum((1, 2))
    assert (beta >= 0.4 - slack).all() and (beta <= 0.7 + slack).all()
    assert len(beta.unique()) > 2


@pytest.mark.parametrize("name", ALL)
def test_a_masked_view_does_not_depend_on_its_batch(pair, name):
    strategy = strategies.build(Choice(name, {}))
    order = [3, 0, 7]
    some = Pair(*(getattr(pair, f)[order] for f in vars(pair)))
    together = strategy(pair, Draws.of(0, 4, torch.arange(BATCH)), GRID)
    apart = strategy(some, Draws.of(0, 4, torch.tensor(order)), GRID)
    for whole, part in zip(together, apart, strict=True):
        if whole is not None:
            torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_masking_leaves_its_input_alone(pair, name):
    before = [getattr(pair, f).clone() for f in vars(pair)]
    apply(name, pair)
    assert all(torch.equal(getattr(pair, f), b) for f, b in zip(vars(pair), before, strict=True))


@pytest.mark.parametrize("name", [*FILLS, "high_pass"])
def test_a_mask_that_needs_saliency_says_so(pair, name):
    blind = Pair(pair.query, pair.key)
    with pytest.raises(ValueError, match="activation"):
        apply(name, blind)


# --------------------------------------------------------------------------------- high-pass


def test_all_views_are_high_pass_filtered(pair):
    query, key, negative = apply("high_pass", pair, focal=0.0)
    torch.testing.assert_close(key, high_passed(pair.key), atol=1e-5, rtol=1e-5)
    for view, source in ((query, pair.query), (negative, pair.key)):
        same = (view - high_passed(source)).abs() < 1e-4
        # what is not filtered is masked: at most a quarter, or 0.7 of the foreground
        assert 0.2 < same.float().mean() < 0.999
        assert not torch.allclose(view, source)


def test_with_ratio_zero_and_no_focal_only_the_filter_is_left(pair):
    query, _, _ = apply("high_pass", pair, ratio=(0, 0), focal=0.0, hard_negative=None)
    torch.testing.assert_close(query, high_passed(pair.query), atol=1e-5, rtol=1e-5)


def test_masked_pixels_are_noise_of_their_own_deviation(pair):
    query, key, negative = apply("high_pass", pair, focal=0.0, ratio=(0.5, 0.5))
    for view, source, deviation in (
        (query, high_passed(pair.query), 0.18),
        (negative, key, 0.14),
    ):
        grain = view[(view - source).abs() > 1e-4]
        # more than 20000 pixels: four deviations of the estimate are below 2 percent
        assert grain.numel() > 20000
        assert grain.std().item() == pytest.approx(deviation, rel=0.03)
        assert abs(grain.mean()) < 0.01


def test_noise_is_drawn_per_image_and_pixel(pair):
    query, _, _ = apply("high_pass", pair, focal=0.0, ratio=(1, 1))  # everything masked
    flat = query.flatten(2).flatten(0, 1)  # (B*3, pixels)
    between = torch.corrcoef(flat) - torch.eye(len(flat))
    assert between.abs().max() < 0.1


@pytest.mark.parametrize(("channel", "distinct"), [(0.0, False), (1.0, True)])
def test_masks_are_shared_or_drawn_per_channel(pair, channel, distinct):
    query, _, negative = apply("high_pass", pair, focal=0.0, channel=channel, ratio=(0.25, 0.25))
    for view, source, activation in (
        (query, pair.query, pair.query_activation),
        (negative, pair.key, pair.key_activation),
    ):
        difference = (view - high_passed(source)).abs()
        cells = difference.unflatten(2, (GRID, PATCH)).unflatten(4, (GRID, PATCH)).amax((3, 5))
        masked = cells > 1e-3  # (B,3,U,V)
        alike = (masked == masked[:, :1]).all()
        assert bool(alike) is not distinct
        # the same numbers in and out of the foreground for every channel
        where = foreground(activation)[:, None]
        for group in (where, ~where):
            counts = (masked & group).sum((2, 3))
            assert torch.equal(counts, counts[:, :1].expand_as(counts))


def test_focal_keeps_a_window_of_the_query_and_drops_one_of_the_negative(pair):
    query, key, negative = apply("high_pass", pair, focal=1.0)
    # 200 px of 224 are 57.1 of 64; 130 px are 37.1
    kept = (query - high_passed(pair.query)).abs().amax(1) < 1e-4
    dropped = (negative - key).abs().amax(1) > 1e-4
    for area, side in ((kept, 57), (dropped, 37)):
        for one in area:
            rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
            assert rows.max() - rows.min() + 1 == side
            assert columns.max() - columns.min() + 1 == side
            assert one.sum() >= 0.98 * side**2  # noise may hit a pixel's own value
    corners = {(int(a.any(1).nonzero()[0]), int(a.any(0).nonzero()[0])) for a in dropped}
    assert len(corners) > BATCH // 2


def test_kinds_come_as_often_as_asked(generator):
    batch = 2000
    flat = torch.zeros(batch, 3, 32, 32)
    maps = torch.rand(batch, 4, 4, generator=generator)
    strategy = strategies.build(Choice("high_pass", {"ratio": (0.25, 0.25)}))
    query, _, _ = strategy(Pair(flat, flat, maps, maps), Draws.of(0, 0, torch.arange(batch)), 4)
    masked = query != 0  # a constant view has no high-pass: what is not 0 is noise
    # 29 of 32 px stay (200/224); else 4 of 16 patches are masked
    focal = masked.float().mean((1, 2, 3)) < 0.2
    apart = ~focal & (masked != masked[:, :1]).flatten(1).any(1)
    assert focal.float().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / batch) ** 0.5)
    share = apart.sum() / (~focal).sum()
    assert share.item() == pytest.approx(0.7, abs=4 * (0.21 / 1600) ** 0.5)


def test_query_and_negative_have_noise_of_their_own(pair):
    everything = {"ratio": (1, 1), "hard_negative": {"ratio": (1, 1)}}
    query, key, negative = apply("high_pass", pair, focal=0.0, **everything)
    masked = negative != key  # the foreground; of the query, all is masked
    r = torch.corrcoef(torch.stack([query[masked], negative[masked]]))[0, 1]
    assert abs(r) < 0.02


# ----------------------------------------------------------------------------------- options


def test_an_unknown_mask_lists_those_there_are():
    with pytest.raises(UserError, match=r"no `bluur` here; choose from none, high_pass, blur"):
        strategies.build(Choice("bluur", {}))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("none", {"ratio": (0, 1)}, "ratio: no such key"),
        ("mean", {"sigma": 3}, "sigma: no such key"),
        ("blur", {"hard_negative": {"ratioo": 1}}, r"hard_negative\.ratioo: no such key"),
        ("blur", {"kernel": "wide"}, "kernel: .*'wide'"),
    ],
)
def test_an_option_that_does_not_fit_is_named(name, options, told):
    with pytest.raises(UserError, match=told):
        strategies.build(Choice(name, options))


def test_the_filter_that_evaluations_apply_is_resolved_to_the_view():
    wanted = {"name": "high_pass", "kernel": 3, "sigma": pytest.approx(5 * 64 / 224)}
    assert strategies.input_filter(Choice("high_pass", {}), 64) == wanted
    wanted = {"name": "high_pass", "kernel": 9, "sigma": pytest.approx(6.0)}
    assert strategies.input_filter(Choice("high_pass", {"kernel": 9, "sigma": 6}), 224) == wanted


@pytest.mark.parametrize("name", ["none", "blur", "mean"])
def test_other_masks_leave_the_encoder_unfiltered(name):
    assert strategies.input_filter(Choice(name, {}), 64) is None
