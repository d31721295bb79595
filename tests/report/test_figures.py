"""The figures of the report, on tiny made-up projects."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from salmask.data import manifest
from salmask.data.loader import Crops
from salmask.data.resample import resample
from salmask.data.views import flip_images, view_geometry
from salmask.encoders import on_disk as encoder_file
from salmask.masks.adios import Masker
from salmask.masks.options import function_of
from salmask.params.run import read_run
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.randomness import Draws
from salmask.report import figures, gallery, histograms, kernels, samples, sheets
from salmask.saliency import store as stores
from salmask.saliency.scda import foreground
from salmask.shapes import Pair, Wiring
from salmask.train.batches import make_batch
from tests.helpers.tiny_report import CPU, a_run, params, picture

# -------------------------------------------------------------------------------------- figures


def test_charts_are_the_same_bytes_and_carry_no_version() -> None:
    histories = {"a": [{"epoch": 1, "loss": 2.0}], "b": [{"epoch": 1, "loss": 1.0, "new": 3.0}]}
    bars = [figures.Bars("val", {"a": (50.0, 10.0), "b": (None, None)})]
    for draw in (lambda: figures.curves(histories), lambda: figures.bars(bars)):
        assert draw() == draw()
        assert not Image.open(io.BytesIO(draw())).text  # type: ignore[attr-defined]


VIEWS = [(32, 4), (32, 5), (64, 8), (224, 7)]


@pytest.mark.parametrize(("size", "grid"), VIEWS)
def test_masked_views_of_any_size_and_of_images_of_any_shape(size: int, grid: int) -> None:
    images = [picture(0, 50, 30), picture(1, 30, 70)]
    maps = {64: torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))}
    view, shown = ViewConfig(size=size, grid=grid), gallery.masks_of([])
    drawn = gallery.mask_sheet(images, maps, view, shown, seed=1)
    assert drawn == gallery.mask_sheet(images, maps, view, shown, seed=1)
    assert drawn != gallery.mask_sheet(images, maps, view, shown, seed=2)
    assert Image.open(io.BytesIO(drawn)).width == sheets.WIDTH


def test_the_sheet_shows_the_views_of_the_training(built) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    store = stores.SaliencyStore.open(project / "artifacts/saliency/saliency.zarr", rows.digest)
    run, ids = read_run(Params(params()), "masked"), rows.ids("train")[:8]
    images = [manifest.read_image(rows, row) for row in ids.tolist()]
    pair = gallery.pair_of(images, {64: store.activation(ids, 64)}, run.view, Draws.of(5, 0, ids))
    boxes, flips = view_geometry(rows.sizes[ids], run.view, 5, 0, ids)
    cut = {
        b: torch.stack([resample(i, (16, 16), x) for i, x in zip(images, boxes[b], strict=True)])
        for b in boxes
    }
    crops = Crops(0, 0, ids, {b: flip_images(cut[b], flips[b]) for b in cut}, boxes, flips)
    trained_on = make_batch(crops, run, 5, store).pair
    assert torch.equal(pair.query, trained_on.query) and torch.equal(pair.key, trained_on.key)
    assert torch.equal(pair.key_activation, store.crop(ids, boxes["key"], flips["key"], (4, 4)))


def masked_cells(title: str) -> tuple[torch.Tensor, ...]:
    """Share of changed pixels per image, channel and cell, of query and negative (B,3,8,8), and
    the foregrounds (B,8,8), under the mask that the sheet shows as `title`."""
    images = [picture(i, 64, 64) for i in range(6)]
    maps = {64: torch.rand(6, 9, 9, generator=torch.Generator().manual_seed(0))}
    view = ViewConfig(size=64, grid=8)
    draws = Draws.of(0, 0, torch.arange(6))
    pair = gallery.pair_of(images, maps, view, draws)
    (shown,) = [s for s in gallery.masks_of([]) if s.title_with_kind == title]
    plain = Choice("high_pass", {**shown.mask.options, "focal": 0.0, "ratio": [0.0, 0.0]})
    masked = function_of(shown.mask)(pair, draws, 8)
    before = pair.query
    if shown.mask.name == "high_pass":
        before = function_of(plain)(pair, draws, 8).query
    changed = [
        (a != b).float() for a, b in ((masked.query, before), (masked.negatives[0], masked.key))
    ]
    cells = [torch.nn.functional.avg_pool2d(c, 8) for c in changed]
    return *cells, foreground(pair.query_activation), foreground(pair.key_activation)


@pytest.mark.parametrize("title", ["strong blur", "mean fill", "high-pass, spatial"])
def test_queries_lose_patches_on_both_sides_and_negatives_in_the_foreground(title: str) -> None:
    query, negative, query_front, key_front = (
        c.amax(1) > 0 if c.dim() == 4 else c for c in masked_cells(title)
    )
    inside, outside = (query & query_front).sum((1, 2)), (query & ~query_front).sum((1, 2))
    assert (inside + outside <= 16).all() and (inside > 0).any() and (outside > 0).any()
    share = query_front.sum((1, 2)) / 64
    assert ((inside - (inside + outside) * share).abs() <= 1).all()  # in proportion
    assert not (negative & ~key_front).any()
    beta = (negative & key_front).sum((1, 2)) / key_front.sum((1, 2))
    assert ((beta > 0.35) & (beta < 0.75)).all()


def test_the_kinds_of_high_pass_match_their_titles() -> None:
    spatial, channel, focal = (
        masked_cells(f"high-pass, {kind}")[0] > 0.5 for kind in ("spatial", "per channel", "focal")
    )
    assert (spatial == spatial[:, :1]).all()
    assert not (channel == channel[:, :1]).all()
    assert not focal[:, :, 2:6, 2:6].any() and (focal == focal[:, :1]).all()


def test_a_mask_with_options_is_shown_apart_and_named_after_its_run() -> None:
    own = a_run(name="light", mask=Choice("blur", {"ratio": [0.0, 0.1]}))
    plain = a_run(name="plain", mask=Choice("blur", {}))
    titles = [s.title for s in gallery.masks_of([own, plain, plain])]
    assert titles.count("strong blur") == 1 and titles.count("strong blur\nlight") == 1


def test_the_outline_of_a_cell_has_four_sides_and_neighbours_share_none() -> None:
    cells = torch.zeros(3, 4, dtype=torch.bool)
    cells[0, 0] = True
    assert len(sheets._borders(cells, (0, 0, 4, 3))) == 4
    cells[0, 1] = True
    lines = sheets._borders(cells, (0, 0, 4, 3))
    assert len(lines) == 6 and [(1, 0), (1, 1)] not in [[*map(tuple, line)] for line in lines]


# ------------------------------------------------------------------------ histograms and kernels


def counted(name: str, kind: str = "", **options: object) -> histograms.Histogram:
    """The histogram of a mask on two views of 4x4 px, which hold 0.5 and 1.5 in all channels."""
    query = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    pair = Pair(query, -query, torch.ones(2, 2, 2), torch.ones(2, 2, 2))
    shown = gallery.ShownMask("title", Choice(name, options), kind)
    draws = Draws.of(0, 0, torch.arange(2))
    return histograms.of_mask(shown, pair, draws, ViewConfig(size=4, grid=2))


def shares(made: torch.Tensor, limit: float) -> list[dict[float, float]]:
    """Value in the middle of a bin (rounded to a tenth) -> percent, for each channel."""
    middles = torch.linspace(-limit, limit, 2 * made.shape[1] + 1)[1::2].tolist()
    return [
        {round(x, 1) + 0.0: y for x, y in zip(middles, row.tolist(), strict=True) if y}
        for row in made
    ]


def test_histograms_count_the_pixels_before_and_after_the_mask() -> None:
    """One of four patches of a view is masked (ratio 0.25), in both halves of the mixtures."""
    erased = counted("erase", ratio=0.25, shape="discrete", fill="zero")
    assert shares(erased.before, erased.limit) == [{0.5: 50.0, 1.5: 50.0}] * 3
    # halves: 1/4 and 3/4 of each view are kept
    assert shares(erased.after, erased.limit) == [{0.0: 50.0, 0.5: 25.0, 1.5: 25.0}] * 3
    blended = counted("mixmask", ratio=0.25, shape="discrete")
    assert shares(blended.after, blended.limit) == [{0.5: 50.0, 1.5: 50.0}] * 3


def test_histograms_of_filtering_masks_compare_filtered_views() -> None:
    options = {"where": "random", "hard_negative": None, "ratio": [0.0, 0.0], "focal": 0.0}
    filtered = counted("high_pass", **options)
    assert shares(filtered.before, filtered.limit) == [{0.0: 100.0}] * 3  # views of one colour
    assert torch.equal(filtered.before, filtered.after)
    noisy = counted("high_pass", **(options | {"ratio": [0.5, 0.5]}))
    assert shares(noisy.after, noisy.limit)[0][0.0] < 90 and torch.equal(
        noisy.before, filtered.before
    )


def test_histograms_of_a_learned_mask_count_the_views_without_each_mask() -> None:
    """Four equal masks of 1/4 leave 3/4 of each value: 0.375 and 1.125."""
    masker = Masker(8, Wiring("moco", "MoCo v2"), masks=4)
    torch.nn.init.zeros_(masker.unet.divide.weight)
    torch.nn.init.zeros_(masker.unet.divide.bias)
    query = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    shown = gallery.ShownMask("ADIOS", Choice("adios", {}), masker=masker)
    draws = Draws.of(0, 0, torch.arange(2))
    made = histograms.of_mask(shown, Pair(query, query), draws, ViewConfig(size=8, grid=2))
    assert shares(made.after, made.limit) == [{0.4: 50.0, 1.2: 50.0}] * 3


def test_values_outside_the_axis_are_in_the_outermost_bins() -> None:
    made = histograms.channel_shares(torch.tensor([-9.0, 9.0]).expand(1, 3, 1, 2), 2.0)
    assert made[:, 0].tolist() == made[:, -1].tolist() == [50.0] * 3


def test_kernels_are_sorted_and_scaled_to_the_largest_weight() -> None:
    """Three kernels of one pixel: red 2, gray 0, blue -1."""
    weights = torch.tensor([[0.0, 0, 0], [0, 0, -1], [2, 0, 0]]).view(3, 3, 1, 1)
    pixels = kernels.mosaic(weights)
    step = 22  # a kernel of 20 px, and a gap of 2 px
    colours = [pixels[0, step * i].tolist() for i in range(4)]
    assert colours[0] == [1.0, 0.5, 0.5, 1.0]
    assert colours[1] == [0.5, 0.5, 0.25, 1.0]
    assert colours[2] == [0.5, 0.5, 0.5, 1.0]
    assert colours[3] == [0.0] * 4  # no kernel here
    assert pixels.shape == (20, 16 * step - 2, 4) and not pixels[0, 20:22].any()


def test_of_many_kernels_some_are_shown() -> None:
    weights = torch.arange(1.0, 129).view(128, 1, 1, 1).expand(128, 3, 2, 2)
    pixels = kernels.mosaic(weights)
    assert pixels.shape[0] == 4 * 22 - 2  # 64 kernels in rows of 16
    assert pixels[0, 0, 0] == 1.0 and pixels[0, 22, 0] == pytest.approx(0.5 + 0.5 * 126 / 128)


def test_the_kernels_of_an_encoder_are_those_of_its_first_convolution(built) -> None:
    folder = built[0] / "artifacts/pretrain/plain"
    encoder = encoder_file.load(folder, CPU)
    assert torch.equal(kernels.first_kernels(folder), encoder.network.get_parameter("conv1.weight"))


# -------------------------------------------------------------------------------------- samples


def test_the_overlap_with_true_masks_is_that_of_cells(built, tmp_path: Path) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    maps = torch.zeros(len(rows), 2, 2)
    maps[:, 0] = 1.0  # the upper half
    store = stores.SaliencyStore({}, {64: maps})
    assert samples.overlap(rows, store, "val", tmp_path) is None
    for row in rows.ids("val").tolist()[:3]:
        mask = Image.new("1", (8, 8))
        mask.paste(1, (0, 0, 5 if row % 2 else 8, 3))  # most of the upper cells
        (tmp_path / "val").mkdir(exist_ok=True)
        mask.save(tmp_path / rows.paths[row])
    known = samples.overlap(rows, store, "val", tmp_path)
    odd = sum(row % 2 for row in rows.ids("val").tolist()[:3])
    assert known is not None and known.images == 3
    assert known.saliency == pytest.approx(100 * (odd * 0.5 + (3 - odd)) / 3)
    assert known.everything == pytest.approx(100 * (odd * 0.25 + (3 - odd) * 0.5) / 3)


def test_a_split_without_labels_is_shown_without_classes(built) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    assert all(name for name, _ in samples.groups(rows, "val"))
    unknown = torch.from_numpy(rows.splits == "val")
    rows = dataclasses.replace(rows, labels=rows.labels.masked_fill(unknown, -1))
    lines = samples.groups(rows, "val")
    assert {name for name, _ in lines} == {""}
    assert [row for _, shown in lines for row in shown] == rows.ids("val").tolist()
    assert all(name for name, _ in samples.groups(rows, "train"))


def test_a_query_is_not_its_own_neighbour_and_classes_are_judged(built) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    encoder = encoder_file.load(project / "artifacts/pretrain/plain", CPU)
    nearest, searched = samples.nearest(encoder, rows, "train", 2, 50)
    assert searched == len(rows.ids("train")) == 12
    for one in nearest:
        assert one.row not in [n.row for n in one.neighbours] and len(one.neighbours) == 11
        cosines = [n.cosine for n in one.neighbours]
        assert cosines == sorted(cosines, reverse=True)
        same = [bool(rows.labels[n.row] == rows.labels[one.row]) for n in one.neighbours]
        assert [n.same_class for n in one.neighbours] == same
    # val has the same images as train: the nearest neighbour of each is its copy
    for one in samples.nearest(encoder, rows, "val", 2, 1)[0]:
        assert rows.sha256[one.neighbours[0].row] == rows.sha256[one.row]


def test_even_spacing_covers_the_range() -> None:
    assert samples.evenly(torch.arange(10), 3).tolist() == [0, 3, 6]
    assert samples.evenly(torch.arange(2), 5).tolist() == [0, 1]
    assert samples.evenly(torch.arange(0), 5).tolist() == []
