import csv
import dataclasses
import io
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.detection import drawing as showing
from salmask.detection import protocol as run
from salmask.detection import training as learning
from salmask.detection.detector import Detector
from salmask.detection.objects import Detections
from salmask.detection.protocol import Sets
from salmask.detection.recipes import RECIPES
from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from salmask.train import checkpoint
from tests.helpers.drawn_scenes import TINY, drawn, encoder, with_ignored

SHORT = TINY | {
    "recipe": "voc",
    "iterations": 4,
    "milestones": (3,),
    "batch": 2,
    "warmup": 2,
    "short_sides": (48, 64),
    "test_short_side": 64,
    "precise_norm": 2,
}


@pytest.fixture
def sets(tmp_path):
    scene = drawn(tmp_path / "drawn", 4)
    return Sets("toy", scene, scene)


def score(sets, job, **more):
    return run.run({"trained": encoder()}, sets, job, **(SHORT | more))


def newest(job):
    return checkpoint.load_newest(job.work, job.fingerprint)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_an_interrupted_training_ends_in_the_same_bytes(sets, job, tmp_path, monkeypatch):
    whole = dataclasses.replace(job, work=tmp_path / "whole", out=tmp_path / "a")
    broken = dataclasses.replace(
        job, work=tmp_path / "broken", out=tmp_path / "b", checkpoint_minutes=0
    )
    wanted = score(sets, whole)
    save = checkpoint.save

    def dies_after_two(folder, step, state):
        save(folder, step, state)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dies_after_two)
        with pytest.raises(KeyboardInterrupt):
            score(sets, broken)
    assert newest(broken)["iteration"] == 2
    torch.rand(7)  # another process has drawn other numbers
    assert score(sets, broken) == wanted
    assert equal(newest(whole), newest(broken)) and newest(whole)["iteration"] == 4
    for name in ("classes.csv", "detections.png"):
        assert (whole.out / name).read_bytes() == (broken.out / name).read_bytes()
    moved, seen = learning.on_device, []
    monkeypatch.setattr(learning, "on_device", lambda *a: seen.append(a) or moved(*a))
    assert score(sets, broken) == wanted
    assert len(seen) == SHORT["precise_norm"]  # and no batch to learn from


def test_a_signal_stops_it_at_a_checkpoint_and_it_goes_on(sets, job, tmp_path, monkeypatch):
    whole = dataclasses.replace(job, work=tmp_path / "whole", out=tmp_path / "a")
    wanted, moved = score(sets, whole), learning.on_device

    def asks(batch, device):
        signal.raise_signal(signal.SIGTERM)
        return moved(batch, device)

    with monkeypatch.context() as patched:
        patched.setattr(learning, "on_device", asks)
        with pytest.raises(InterruptedRunError, match="at iteration 1 of 4; a checkpoint is saved"):
            score(sets, job)
    assert newest(job)["iteration"] == 1
    assert score(sets, job) == wanted
    assert equal(newest(whole), newest(job))


def test_a_folder_that_vanishes_stops_it_at_a_checkpoint(sets, job, tmp_path, monkeypatch):
    wanted = score(sets, dataclasses.replace(job, work=tmp_path / "whole"))
    folder, moved = sets.train.pictures[0].file.parent, learning.on_device

    def loses_them(batch, device):
        folder.rename(tmp_path / "elsewhere")
        return moved(batch, device)

    with monkeypatch.context() as patched:
        patched.setattr(learning, "on_device", loses_them)
        with pytest.raises(DataGoneError, match="is not there: mount it"):
            score(sets, job)
    assert newest(job)["iteration"] == 1
    (tmp_path / "elsewhere").rename(folder)
    assert score(sets, job) == wanted


def test_metrics_and_files(sets, job):
    found = score(sets, job)
    names = {"ap", "ap50", "ap75", "ap_s"} | ({"ap_m"} if "detect_toy_box_ap_m" in found else set())
    assert set(found) == {f"detect_toy_{kind}_{n}" for kind in ("box", "mask") for n in names}
    with (job.out / "classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["kind"], r["class"], r["objects"]) for r in rows] == [
        (kind, name, "3") for kind in ("box", "mask") for name in ("red", "blue")
    ]
    mean = np.mean([float(row["ap"]) for row in rows[:2]])
    assert found["detect_toy_box_ap"] == pytest.approx(mean, abs=1e-3)


def test_vocs_rule_is_used_for_its_format(sets, job):
    voc = dataclasses.replace(sets.train, rule="voc")
    found = score(Sets("toy", voc, voc), job, iterations=1, milestones=())
    assert set(found) == {f"detect_toy_box_{name}" for name in ("ap", "ap50", "ap75")}


def test_a_detector_that_finds_nothing_scores_0(sets, job, monkeypatch):
    monkeypatch.setattr(learning, "train", lambda *a: None)
    train = Detector.train

    def blind(self, mode=True):
        self.heads.score_thresh = 1.1
        return train(self, mode)

    monkeypatch.setattr(Detector, "train", blind)
    found = score(sets, job, iterations=1, milestones=())
    assert found and set(found.values()) == {0.0}
    sheet = Image.open(job.out / "detections.png")
    assert sheet.size[0] == 824


def test_colours_learned_by_heart_are_found(tmp_path, job):
    """The whole way: what a short training has seen, it finds where it is, boxes and masks."""
    scene = drawn(tmp_path / "drawn", 5)
    options = {"iterations": 90, "milestones": (76,), "batch": 4, "warmup": 10, "lr": 0.1,
               "short_sides": (64,)}  # fmt: skip
    found = score(Sets("toy", scene, scene), job, **options)
    assert found["detect_toy_box_ap50"] > 70
    assert found["detect_toy_mask_ap50"] > 70


def test_the_rate_of_every_published_recipe():
    voc, coco, twice = (RECIPES[name] for name in ("voc", "coco_1x", "coco_2x"))
    rates = {i: voc.rate(i) for i in (0, 50, 100, 17_999, 18_000, 21_999, 22_000, 23_999)}
    assert rates == pytest.approx(
        {0: 2e-5, 50: 0.01001, 100: 0.02, 17_999: 0.02, 18_000: 2e-3, 21_999: 2e-3, 22_000: 2e-4,
         23_999: 2e-4}
    )  # fmt: skip
    assert (voc.iterations, voc.batch, voc.momentum, voc.weight_decay) == (24_000, 16, 0.9, 1e-4)
    assert (min(voc.short_sides), max(voc.short_sides), len(voc.short_sides)) == (480, 800, 11)
    assert coco.rate(500) == pytest.approx(0.02 * (0.5 + 0.0005))
    assert (coco.iterations, twice.iterations) == (90_000, 180_000)
    assert (coco.rate(59_999), coco.rate(60_000)) == pytest.approx((0.02, 0.002))
    assert (twice.rate(119_999), twice.rate(160_000)) == pytest.approx((0.02, 0.0002))
    assert coco.short_sides == (640, 672, 704, 736, 768, 800)
    assert RECIPES["mscn_voc"].rate(0) == pytest.approx(0.085 * 0.333)
    assert RECIPES["mscn_coco"].lr == 0.05 and RECIPES["mscn_coco"].warmup_factor == 0.333


@pytest.mark.parametrize(("scaled", "rate"), [(False, 0.02), (True, 0.0025)])
def test_the_rate_scales_with_the_batch_only_if_asked(sets, job, scaled, rate):
    score(sets, job, iterations=1, milestones=(), warmup=0, scale_lr=scaled)
    assert newest(job)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(rate)


def test_norms_do_not_decay(sets, job):
    score(sets, job, iterations=1, milestones=())
    decays = [g["weight_decay"] for g in newest(job)["optimizer"]["param_groups"]]
    assert decays == [1e-4, 0.0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"recipe": "fast"}, "no `fast` here; choose from voc"),
        ({"iterations": 2}, r"milestones \[3\] must grow and lie below the 2 iterations"),
        ({"batch": 0}, "must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(sets, job, options, reason):
    with pytest.raises(UserError, match=reason):
        score(sets, job, **options)


def test_sets_that_do_not_fit_are_refused(sets, job, tmp_path):
    other = dataclasses.replace(sets.test, classes=("red", "green"))
    with pytest.raises(UserError, match="classes or formats of toy's"):
        score(Sets("toy", sets.train, other), job)
    plain = drawn(tmp_path / "plain", 2, masks=False)
    with pytest.raises(UserError, match="masks are asked for"):
        score(Sets("toy", plain, plain), job, masks=True)
    with pytest.raises(UserError, match="not a/b"):
        score(Sets("a/b", plain, plain), job)
    empty = drawn(tmp_path / "empty", 1)
    with pytest.raises(UserError, match="no image to train on in toy"):
        score(Sets("toy", empty, empty), job)


def test_a_loss_that_leaves_the_numbers_ends_it(sets, job):
    with pytest.raises(NonFiniteLossError, match="at iteration"):
        score(sets, job, lr=1e9, warmup=0, iterations=20, milestones=())


def test_the_sheet_shows_truth_and_what_was_sure(tmp_path):
    scene = with_ignored(drawn(tmp_path / "drawn", 3), True, False)
    boxes = np.array([[10.0, 10, 60, 50], [5, 5, 20, 20]])
    seen = Detections(boxes, np.array([0.9, 0.4]), np.array([0, 1]))
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    found = [seen, nothing, nothing]
    png = showing.sheet(scene, found, 2)
    assert png == showing.sheet(scene, found, 2)
    page = np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert page.shape == (2 * 320 + 3 * 8, 2 * 400 + 3 * 8, 3)  # the first picture and the last
    edge = tuple(page[8 + 5 * 30, 416 + 5 * 10])  # left edge of the sure box, 5 px for one
    assert edge == showing._colour(0)
    assert tuple(page[8 + 5 * 12, 416 + 5 * 5]) == (128, 128, 128)  # the other is not drawn
    every = Image.open(io.BytesIO(showing.sheet(scene, found, 9)))
    assert every.size == (824, 3 * 320 + 4 * 8)
