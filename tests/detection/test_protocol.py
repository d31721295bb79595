"""The whole protocol on small drawings: training, resuming, scores and files."""

import csv
import dataclasses
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.detection import protocol, training
from salmask.detection.detector import Detector
from salmask.detection.objects import DetectionData
from salmask.detection.recipes import RECIPES
from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from salmask.job import Job
from salmask.train import checkpoint
from tests.helpers.drawn_scenes import TINY, drawn, encoder

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


def run(data, job, **more):
    return protocol.run({"trained": encoder()}, data, job, **(SHORT | more))


def newest(job):
    return checkpoint.load_newest(job.work, job.fingerprint)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def data(tmp_path):
    scene = drawn(tmp_path / "drawn", 4)
    return DetectionData("toy", scene, scene)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The job of a training that was not interrupted, and its metrics."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    scene = drawn(folder / "drawn", 4)
    job = Job("f" * 12, folder / "work", folder / "out", torch.device("cpu"), seed=0, workers=0)
    return job, run(DetectionData("toy", scene, scene), job)


def test_an_interrupted_training_ends_in_the_same_bytes(data, job, uninterrupted, monkeypatch):
    whole, metrics = uninterrupted
    job = dataclasses.replace(job, checkpoint_minutes=0)
    save = checkpoint.save

    def save_and_stop_after_two(folder, step, state):
        save(folder, step, state)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            run(data, job)
    assert newest(job)["step"] == 2
    torch.rand(7)  # another state of torch's generator
    assert run(data, job) == metrics
    assert equal(newest(whole), newest(job)) and newest(whole)["step"] == 4
    for name in ("classes.csv", "detections.png"):
        assert (whole.out / name).read_bytes() == (job.out / name).read_bytes()
    inputs, batches = training.detector_inputs, []
    monkeypatch.setattr(training, "detector_inputs", lambda *a: batches.append(a) or inputs(*a))
    assert run(data, job) == metrics
    assert len(batches) == SHORT["precise_norm"]  # no training batch


def test_a_signal_stops_a_training_at_a_checkpoint(data, job, uninterrupted, monkeypatch):
    whole, metrics = uninterrupted
    inputs = training.detector_inputs

    def send_signal(batch):
        signal.raise_signal(signal.SIGTERM)
        return inputs(batch)

    with monkeypatch.context() as patched:
        patched.setattr(training, "detector_inputs", send_signal)
        with pytest.raises(InterruptedRunError, match="at iteration 1 of 4; a checkpoint is saved"):
            run(data, job)
    assert newest(job)["step"] == 1
    assert run(data, job) == metrics
    assert equal(newest(whole), newest(job))


def test_a_missing_folder_of_images_stops_a_training_at_a_checkpoint(
    data, job, tmp_path, uninterrupted, monkeypatch
):
    folder, inputs = data.train.images[0].file.parent, training.detector_inputs

    def move_images(batch):
        folder.rename(tmp_path / "elsewhere")
        return inputs(batch)

    with monkeypatch.context() as patched:
        patched.setattr(training, "detector_inputs", move_images)
        with pytest.raises(DataGoneError, match="does not exist: mount it"):
            run(data, job)
    assert newest(job)["step"] == 1
    (tmp_path / "elsewhere").rename(folder)
    assert run(data, job) == uninterrupted[1]


def test_metrics_and_files(uninterrupted):
    job, metrics = uninterrupted
    names = {"ap", "ap50", "ap75", "ap_s"} | (
        {"ap_m"} if "detect_toy_box_ap_m" in metrics else set()
    )
    assert set(metrics) == {f"detect_toy_{kind}_{n}" for kind in ("box", "mask") for n in names}
    with (job.out / "classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["kind"], r["class"], r["objects"]) for r in rows] == [
        (kind, name, "3") for kind in ("box", "mask") for name in ("red", "blue")
    ]
    mean = np.mean([float(row["ap"]) for row in rows[:2]])
    assert metrics["detect_toy_box_ap"] == pytest.approx(mean, abs=1e-3)


def test_batch_norms_have_no_weight_decay(uninterrupted):
    groups = newest(uninterrupted[0])["state"]["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


def test_the_rate_scales_with_the_batch_only_if_set(data, job, uninterrupted):
    (rate, _) = (g["lr"] for g in newest(uninterrupted[0])["state"]["optimizer"]["param_groups"])
    assert rate == pytest.approx(0.002)  # after the milestone
    run(data, job, iterations=1, milestones=(), warmup=0, scale_lr=True)
    (rate, _) = (g["lr"] for g in newest(job)["state"]["optimizer"]["param_groups"])
    assert rate == pytest.approx(0.0025)


def test_vocs_rule_is_used_for_its_format(data, job):
    voc = dataclasses.replace(data.train, rule="voc")
    metrics = run(DetectionData("toy", voc, voc), job, iterations=1, milestones=())
    assert set(metrics) == {f"detect_toy_box_{name}" for name in ("ap", "ap50", "ap75")}


def test_a_detector_without_detections_scores_0(data, job, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *a: None)
    train = Detector.train

    def without_detections(self, mode=True):
        self.heads.score_thresh = 1.1
        return train(self, mode)

    monkeypatch.setattr(Detector, "train", without_detections)
    metrics = run(data, job, iterations=1, milestones=())
    assert metrics and set(metrics.values()) == {0.0}
    sheet = Image.open(job.out / "detections.png")
    assert sheet.size[0] == 824


def test_objects_of_training_images_are_detected(tmp_path, job):
    """After a short training, boxes and masks of the training images have a high AP."""
    scene = drawn(tmp_path / "drawn", 4)
    options = {"iterations": 60, "milestones": (51,), "batch": 3, "warmup": 8, "lr": 0.1,
               "short_sides": (64,)}  # fmt: skip
    metrics = run(DetectionData("toy", scene, scene), job, **options)
    assert metrics["detect_toy_box_ap50"] > 70
    assert metrics["detect_toy_mask_ap50"] > 70


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


def test_the_rate_of_mscns_recipes():
    """Jing et al. 2022, App. A.4: from 0.333 of the rate over 1,000 iterations, on VOC and COCO."""
    voc, coco = RECIPES["mscn_voc"], RECIPES["mscn_coco"]
    rates = {i: voc.rate(i) for i in (0, 100, 500, 1000, 17_999, 18_000, 22_000)}
    factors = {0: 0.333, 100: 0.3997, 500: 0.6665, 1000: 1, 17_999: 1, 18_000: 0.1, 22_000: 0.01}
    assert rates == pytest.approx({i: 0.085 * factor for i, factor in factors.items()})
    assert (voc.iterations, voc.batch) == (24_000, 16)
    assert [coco.rate(i) for i in (0, 500, 1000)] == pytest.approx([0.01665, 0.033325, 0.05])
    assert (coco.iterations, coco.milestones, coco.batch) == (90_000, (60_000, 80_000), 16)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"recipe": "fast"}, "no `fast` here; choose from voc"),
        ({"iterations": 2}, r"milestones: \[3\] must increase and be smaller than iterations"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, job, options, reason):
    with pytest.raises(UserError, match=reason):
        run(data, job, **options)


def test_data_that_do_not_fit_are_refused(data, job, tmp_path):
    plain = drawn(tmp_path / "plain", 2, masks=False)
    with pytest.raises(UserError, match="toy was read without masks"):
        run(DetectionData("toy", plain, plain), job, masks=True)
    empty = drawn(tmp_path / "empty", 1)
    with pytest.raises(UserError, match="toy has no training image"):
        run(DetectionData("toy", empty, empty), job)


def test_a_loss_that_is_not_finite_stops_the_training(data, job):
    with pytest.raises(NonFiniteLossError, match="at iteration"):
        run(data, job, lr=1e9, warmup=0, iterations=20, milestones=())
