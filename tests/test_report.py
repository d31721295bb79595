"""The report on tiny made-up projects: what it reads, compares, draws and escapes."""

import io
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from salmask import encoder_file
from salmask.backbones import build_encoder
from salmask.config import Choice, EncoderConfig, Params, RunConfig, ViewConfig
from salmask.data import manifest
from salmask.data.images import resample
from salmask.data.loader import Crops, geometry, mirror
from salmask.data.manifest import Found, Listing
from salmask.errors import UserError
from salmask.files import write_json
from salmask.masks import strategies
from salmask.provenance import recipe, record
from salmask.randomness import Draws
from salmask.report import figures, gallery, papers, samples, sheets, tables
from salmask.saliency import store as stores
from salmask.saliency.scda import foreground
from salmask.train.loop import make_views
from stages.report import main as stage

EVIL = "<script>alert(1)</script>"
KNN = {"knn20_top1": 50.0, "knn200_top1": 40.0, "random_knn20_top1": 20.0}
CPU = torch.device("cpu")


def picture(index: int, width: int = 24, height: int = 24) -> Image.Image:
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def params(**runs: dict) -> dict:
    return {
        "seed": 0,
        "encoder": {"arch": "resnet10", "width": 4, "stem": "small2"},
        "view": {"size": 16, "grid": 4, "crop": [0.5, 1.0], "blur_p": 0.0},
        "mask": {"name": "none"},
        "framework": {"name": "moco"},
        "train": {"epochs": 2, "batch": 4},
        "runs": runs or {"plain": {}, "masked": {"mask": {"name": "high_pass"}}},
        "evaluate": {"protocols": ["knn", "linear_fast"]},
    }


def evaluated(root: Path, run: str, protocol: str, metrics: dict[str, float]) -> None:
    folder = root / "artifacts/evaluate" / run / protocol
    write_json(folder / "metrics.json", metrics)
    made = recipe(protocol, run, {"seed": 0}, [Path("artifacts/pretrain") / run], root)
    write_json(folder / "provenance.json", record(made, folder, CPU))


def make_project(
    root: Path, classes: tuple[str, ...] = ("cat", EVIL), splits: tuple[str, ...] = ("train", "val")
) -> Path:
    """A project whose pipeline has run, with images of two shapes and random saliency."""
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
    data, found = root / "artifacts/data", []
    for split in splits:
        for i in range(12):
            path = f"{split}/{i}.png"
            (data / "images" / split).mkdir(parents=True, exist_ok=True)
            picture(i, 24 + 8 * (i % 2)).save(data / "images" / path)
            found.append(Found(path, i % len(classes) if classes else -1, split))
    (data / "images/train/broken.png").write_text("not an image")
    found.append(Found("train/broken.png", -1, "train"))
    manifest.write(Listing(data / "images", classes, found), "mine", data, 0.5)
    rows = manifest.load(data)
    plan = stores.Plan(len(rows), 100, {64: (3, 3)}, {"manifest": rows.digest})
    maps = torch.rand(len(rows), 3, 3, generator=torch.Generator().manual_seed(0))
    (root / "artifacts/saliency").mkdir()
    stores.fill(
        root / "artifacts/saliency/saliency.zarr", plan, lambda r: {64: maps[r.start : r.stop]}
    )
    for name in params()["runs"]:
        config = Params(params()).run(name)
        folder = root / "artifacts/pretrain" / name
        encoder_file.save(build_encoder(config.encoder, seed=0), config, folder)
        (folder / "history.csv").write_text("epoch,lr,loss,other\n1,0.1,3,1\n2,0,2,4\n")
        made = recipe("pretrain", name, {"seed": 0}, [Path("artifacts/data")], root)
        write_json(folder / "provenance.json", record(made, folder, CPU))
        evaluated(root, name, "knn", KNN if classes else {})
        evaluated(root, name, "linear_fast", {"linear_fast_top1": 61.0} if classes else {})
    return root


def run_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(the page, what the terminal shows)."""
    monkeypatch.chdir(project)
    done = CliRunner().invoke(stage, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return (project / "artifacts/report/index.html").read_text(), done.output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    project = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        return project, *run_stage(project, patch)


# -------------------------------------------------------------------------------------- tables


def a_run(**changes: object) -> RunConfig:
    common = params() | {"encoder": {"arch": "resnet50"}, "mask": {"name": "high_pass"}}
    return replace(Params(common).run("plain"), **changes)  # type: ignore[arg-type]


def test_results_hold_the_metrics_of_every_protocol_and_their_lineage(built) -> None:
    project, _, _ = built
    rows = json.loads((project / "artifacts/report/results.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["plain", "masked"]  # as params lists them
    assert rows[0]["dataset"] == "mine"
    assert rows[0]["metrics"] == KNN | {"linear_fast_top1": 61.0}
    for step in ("knn:plain@", "linear_fast:plain@", "pretrain:plain@"):
        assert step in rows[0]["lineage"]
    assert "masked" not in rows[0]["lineage"] and "\n" not in rows[0]["lineage"]


def test_a_missing_protocol_is_the_users_to_repair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plain.knn.metrics\.json is missing"):
        tables.collect(["plain"], ["knn"], tmp_path, tmp_path)


def scores(**metrics: float) -> list[tables.Block]:
    rows = [
        {"run": "a", "dataset": "mine", "metrics": KNN},
        {"run": "b", "dataset": "mine", "metrics": metrics},
    ]
    configs = {"a": a_run(name="a"), "b": a_run(name="b")}
    return tables.blocks({"rows": rows}, {"val": "", "far": "far_"}, configs)


def test_gain_is_in_points_over_the_untrained_encoder_and_small_k_comes_first() -> None:
    (block,) = scores(knn20_top1=30.0)  # nothing was scored on `far`
    assert list(block.metrics) == ["knn20_top1", "knn200_top1"]
    assert block.rows["a"][0].gain == 30.0
    assert block.rows["a"][1].gain is None and block.rows["b"][0].gain is None


def test_metrics_of_another_split_stand_in_a_table_of_their_own() -> None:
    val, far = scores(far_knn20_top1=7.0, far_random_knn20_top1=3.0)
    assert val.rows["b"][0].value is None
    assert (far.split, list(far.metrics), far.rows["b"][0].gain) == ("far", ["knn20_top1"], 4.0)


def test_what_is_missing_is_a_dash_in_the_text_table() -> None:
    lines = tables.text(scores(knn20_top1=30.0)).splitlines()
    assert lines[0].split() == ["val", "knn20_top1", "random", "gain", "knn200_top1"]
    assert lines[2].split() == ["a", "50.00", "20.00", "+30.00", "40.00"]
    assert lines[3].split() == ["b", "30.00", "–", "–", "–"]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_the_best_run_is_the_one_with_the_best_first_knn() -> None:
    assert tables.best_run(scores(knn20_top1=51.0, knn200_top1=1.0), ["a", "b"])[0] == "b"
    assert tables.best_run([], ["a", "b"])[0] == "a"


@pytest.mark.parametrize(
    ("framework", "mask", "value"),
    [("moco", "high_pass", 73.8), ("moco", "none", 68.22), ("simclr", "mean", 77.36)],
)
def test_the_papers_number_stands_beside_ours(framework: str, mask: str, value: float) -> None:
    run = a_run(framework=Choice(framework, {}), mask=Choice(mask, {}))
    found = papers.beside(run, "imagenet100", "linear_top1")
    assert found is not None and found.value == value and found.table == "1"


@pytest.mark.parametrize(
    ("change", "dataset", "metric"),
    [
        ({}, "demo", "linear_top1"),
        ({}, "imagenet100", "linear_fast_top1"),
        ({}, "imagenet100", "knn20_top1"),
        ({"encoder": EncoderConfig(arch="resnet18")}, "imagenet100", "linear_top1"),
        ({"encoder": EncoderConfig(width=32)}, "imagenet100", "linear_top1"),
        ({"mask": Choice("high_pass", {"focal": 0.0})}, "imagenet100", "linear_top1"),
        ({"framework": Choice("moco", {"head": "linear"})}, "imagenet100", "linear_top1"),
        ({"framework": Choice("byol", {})}, "imagenet100", "linear_top1"),
        ({}, "tinyimagenet", "top1"),  # the ablations vary more than we record
    ],
)
def test_whatever_differs_from_the_paper_stands_alone(change, dataset: str, metric: str) -> None:
    assert papers.beside(a_run(**change), dataset, metric) is None


def test_options_that_repeat_the_defaults_are_still_the_papers_mask() -> None:
    run = a_run(mask=Choice("high_pass", {"ratio": [0.05, 0.25]}))
    assert papers.beside(run, "imagenet100", "linear_top1") is not None


def test_a_number_that_the_paper_prints_twice_is_the_same_number() -> None:
    seen: dict[tuple, float] = {}
    for row in papers.reported():
        if row.dataset == "imagenet100" and "COCO" not in row.setting:
            key = (row.framework, row.mask, row.metric)
            assert seen.setdefault(key, row.value) == row.value, key
    counts = {name: sum(r.table == name for r in papers.reported()) for name in papers.TITLES}
    assert list(counts.values()) == [12, 36, 8, 9, 12, 10, 5, 6, 60]


# -------------------------------------------------------------------------------------- figures


def test_charts_are_the_same_bytes_and_carry_no_version() -> None:
    histories = {"a": [{"epoch": 1, "loss": 2.0}], "b": [{"epoch": 1, "loss": 1.0, "new": 3.0}]}
    bars = [figures.Bars("val", {"a": (50.0, 10.0), "b": (None, None)})]
    for draw in (lambda: figures.curves(histories), lambda: figures.bars(bars)):
        assert draw() == draw()
        assert not Image.open(io.BytesIO(draw())).text  # type: ignore[attr-defined]


VIEWS = [(32, 4), (64, 8), (64, 4), (224, 7)]


@pytest.mark.parametrize(("size", "grid"), VIEWS)
def test_masked_views_of_any_size_and_of_images_of_any_shape(size: int, grid: int) -> None:
    images = [picture(0, 50, 30), picture(1, 30, 70)]
    maps = {64: torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))}
    view, shown = ViewConfig(size=size, grid=grid), gallery.masks_of([])
    drawn = gallery.mask_sheet(images, maps, view, shown, seed=1)
    assert drawn == gallery.mask_sheet(images, maps, view, shown, seed=1)
    assert drawn != gallery.mask_sheet(images, maps, view, shown, seed=2)
    assert Image.open(io.BytesIO(drawn)).width == sheets.WIDTH


def test_the_sheet_shows_the_views_that_training_sees(built) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    store = stores.SaliencyStore.open(project / "artifacts/saliency/saliency.zarr", rows.digest)
    run, ids = Params(params()).run("masked"), rows.ids("train")[:8]
    images = [manifest.read_image(rows, row) for row in ids.tolist()]
    pair = gallery.pair_of(images, {64: store.activation(ids, 64)}, run.view, Draws.of(5, 0, ids))
    boxes, flips = geometry(rows, run.view, 5, 0, ids)
    cut = {
        b: torch.stack([resample(i, (16, 16), x) for i, x in zip(images, boxes[b], strict=True)])
        for b in boxes
    }
    crops = Crops(0, 0, ids, {b: mirror(cut[b], flips[b]) for b in cut}, boxes, flips)
    seen = make_views(crops, run, 5, strategies.build(Choice("none", {})), store)
    assert torch.equal(pair.query, seen.query) and torch.equal(pair.key, seen.key)
    assert torch.equal(pair.key_activation, store.crop(ids, boxes["key"], flips["key"], (4, 4)))


def masked_cells(title: str) -> tuple[torch.Tensor, ...]:
    """Share of changed pixels per image, channel and cell, of query and negative (B,3,8,8), and
    the foregrounds (B,8,8), under the mask that the sheet shows as `title`."""
    images = [picture(i, 64, 64) for i in range(6)]
    maps = {64: torch.rand(6, 9, 9, generator=torch.Generator().manual_seed(0))}
    view = ViewConfig(size=64, grid=8)
    draws = Draws.of(0, 0, torch.arange(6))
    pair = gallery.pair_of(images, maps, view, draws)
    (shown,) = [s for s in gallery.masks_of([]) if s.title == title]
    plain = Choice("high_pass", {**shown.mask.options, "focal": 0.0, "ratio": [0.0, 0.0]})
    query, key, negative = strategies.build(shown.mask)(pair, draws, 8)
    before = (
        pair.query if shown.mask.name != "high_pass" else strategies.build(plain)(pair, draws, 8)[0]
    )
    changed = [(a != b).float() for a, b in ((query, before), (negative, key))]
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


def test_the_kinds_of_high_pass_are_what_their_titles_say() -> None:
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


# -------------------------------------------------------------------------------------- samples


def test_the_overlap_with_true_masks_is_that_of_cells(built, tmp_path: Path) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    found = torch.zeros(len(rows), 2, 2)
    found[:, 0] = 1.0  # the upper half
    store = stores.SaliencyStore({}, {64: found})
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


def test_a_query_is_not_its_own_neighbour_and_classes_are_judged(built) -> None:
    project, _, _ = built
    rows = manifest.load(project / "artifacts/data")
    encoder = encoder_file.load(project / "artifacts/pretrain/plain", CPU)
    found, searched = samples.nearest(encoder, rows, "train", 2, 50)
    assert searched == len(rows.ids("train")) == 12
    for one in found:
        assert one.query not in one.rows and len(one.rows) == 11
        assert list(one.cosines) == sorted(one.cosines, reverse=True)
        same = [bool(rows.labels[r] == rows.labels[one.query]) for r in one.rows]
        assert [n.right for n in samples.judged(rows, one)] == same
    # val holds the very pictures of train: each finds its own copy first
    for one in samples.nearest(encoder, rows, "val", 2, 1)[0]:
        assert rows.sha256[one.rows[0]] == rows.sha256[one.query]


def test_even_spacing_covers_the_range() -> None:
    assert samples.evenly(torch.arange(10), 3).tolist() == [0, 3, 6]
    assert samples.evenly(torch.arange(2), 5).tolist() == [0, 1]
    assert samples.evenly(torch.arange(0), 5).tolist() == []


# -------------------------------------------------------------------------------------- the page


class Loads(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]


def test_the_page_needs_no_network(built) -> None:
    page = Loads()
    page.feed(built[1])
    assert len(page.sources) == 5  # curves, bars, saliency, masks, neighbours
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in built[1] and "@import" not in built[1] and "://" not in built[1]


def test_names_are_escaped(built) -> None:
    assert EVIL not in built[1]
    assert "&lt;script&gt;alert(1)" in built[1]


def test_the_page_says_what_was_run_and_shows_what_was_scored(built) -> None:
    _, html, said = built
    for words in ("12 train, 12 val", "of 2 classes", "1 file could not be read", "+30.00"):
        assert words in html
    assert "salmask lineage artifacts/evaluate/masked/knn/metrics.json" in html
    assert "demo numbers" not in html and 'class="first best"' in html
    assert "plain" in said and "+30.00" in said and "artifacts/report/index.html" in said


def test_equal_runs_write_equal_bytes_and_removed_runs_stay_out(built, monkeypatch) -> None:
    project, html, _ = built
    before = {p.name: p.read_bytes() for p in (project / "artifacts/report").iterdir()}
    evaluated(project, "removed", "knn", {"knn20_top1": 99.99})
    evaluated(project, "plain", "removed-protocol", {"knn20_top1": 99.98})
    again, said = run_stage(project, monkeypatch)
    assert again == html and "99.9" not in again + said
    after = {p.name: p.read_bytes() for p in (project / "artifacts/report").iterdir()}
    assert after == before and {"index.html", "results.json", "provenance.json"} <= set(after)


def test_images_without_labels_and_without_a_validation_split(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path, classes=(), splits=("train",))
    html, said = run_stage(project, monkeypatch)
    assert (
        "without labels" in html and "Nothing was scored" in html and "nothing was scored" in said
    )
    assert "Solid green frames" not in html and "Nearest neighbours" in html
    rows = manifest.load(project / "artifacts/data")
    encoder = encoder_file.load(project / "artifacts/pretrain/plain", CPU)
    found, _ = samples.nearest(encoder, rows, "train", 1, 3)
    assert [n.right for n in samples.judged(rows, found[0])] == [None] * 3


def test_the_page_says_that_there_is_no_saliency(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    shutil.rmtree(project / "artifacts/saliency")
    html, _ = run_stage(project, monkeypatch)
    assert "There is no saliency store" in html and "What the masks do" not in html


def test_the_demo_is_announced_and_its_best_is_not_bold(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    dataset = project / "artifacts/data/dataset.json"
    dataset.write_text(dataset.read_text().replace('"mine"', '"demo"'))
    html, _ = run_stage(project, monkeypatch)
    assert "These are demo numbers: they test the plumbing and order no masks." in html
    assert 'class="first best"' not in html
