import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.evaluate import classifier, linear
from salmask.evaluate.classifier import ClassifierSchedule
from salmask.params.encoder import EncoderConfig
from salmask.train import checkpoint
from tests.helpers.states import differences

OPTIONS = {"lr": 2.0, "batch": 8, "epochs": 4, "milestones": (2, 3), "images": "resident"}


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


ENCODERS = {"trained": Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 9, None)).eval()}


@pytest.fixture
def rows(make_manifest):
    """Two colours in two splits, and an image without a label."""
    images = []
    for split in ("train", "val", "other"):
        for i in range(24):
            pixels = np.full((10, 12, 3), 80, np.uint8)
            pixels[..., 2 * (i % 2)] = 120 + 5 * i
            images.append((pixels, i % 2, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    return make_manifest(images)


@pytest.mark.parametrize("images", ["stream", "resident"])
def test_separable_colours_are_classified_in_every_split(rows, job, images):
    result = linear.run(ENCODERS, rows, job, **(OPTIONS | {"images": images, "epochs": 12}))
    assert result == {"linear_top1": 100.0, "other_linear_top1": 100.0}


def _states(folder) -> dict:
    return checkpoint.load_newest(folder / "linear", "f" * 12)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(rows, job, tmp_path, monkeypatch):
    whole = dataclasses.replace(job, work=tmp_path / "whole")
    broken = dataclasses.replace(job, work=tmp_path / "broken", checkpoint_minutes=0)
    expected = linear.run(ENCODERS, rows, whole, **OPTIONS)
    save = checkpoint.save

    def dies_in_mid_epoch(folder, step, state):
        save(folder, step, state)
        if step == 7:  # in the third epoch, at 3 steps an epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dies_in_mid_epoch)
        with pytest.raises(KeyboardInterrupt):
            linear.run(ENCODERS, rows, broken, **OPTIONS)
    assert _states(broken.work)["step"] == 7
    assert linear.run(ENCODERS, rows, broken, **OPTIONS) == expected
    a, b = _states(whole.work), _states(broken.work)
    assert a["step"] == 12 and differences(a, b) == []


def test_a_finished_training_only_scores_again(rows, job, monkeypatch):
    expected = linear.run(ENCODERS, rows, job, **OPTIONS)
    monkeypatch.setattr(checkpoint, "save", lambda *a: pytest.fail("trained again"))
    assert linear.run(ENCODERS, rows, job, **OPTIONS) == expected


def test_the_rate_scales_with_the_batch_and_falls_at_milestones(rows, job, monkeypatch):
    rates = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, step, state: rates.append(
            state["state"]["optimizer"]["param_groups"][0]["lr"]
        ),
    )
    linear.run(ENCODERS, rows, dataclasses.replace(job, checkpoint_minutes=0), **OPTIONS)
    # 2.0 * 8 / 256 = 0.0625, a tenth of it from epoch 2, a hundredth from epoch 3
    expected = [0.0625, 0.0625, 0.00625, 0.000625]
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)])  # 3 steps each


def test_the_rate_scales_with_the_actual_batch(rows, job, monkeypatch):
    rates = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, step, state: rates.append(
            state["state"]["optimizer"]["param_groups"][0]["lr"]
        ),
    )
    often = dataclasses.replace(job, checkpoint_minutes=0)
    linear.run(ENCODERS, rows, often, **(OPTIONS | {"batch": 256, "milestones": ()}))
    assert rates == pytest.approx([2.0 * 24 / 256] * 4)  # 24 labelled training images


def test_the_seed_decides_the_result_and_repeats_it(rows, job, tmp_path):
    def weights(seed: int, name: str) -> torch.Tensor:
        some = dataclasses.replace(job, seed=seed, work=tmp_path / name)
        linear.run(ENCODERS, rows, some, **OPTIONS)
        return _states(some.work)["state"]["model"]["0.weight"]

    assert torch.equal(weights(1, "a"), weights(1, "b"))
    assert not torch.equal(weights(1, "a2"), weights(2, "c"))


def test_the_encoder_stays_frozen(rows, job):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    encoder = Encoder(network, EncoderConfig(), InputSpec(8, 9, None)).eval()
    encoder.requires_grad_(False)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    linear.run({"trained": encoder}, rows, job, **OPTIONS)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_without_labels_there_is_nothing_to_score(make_manifest, job):
    rows = make_manifest([(np.zeros((8, 8, 3), np.uint8), -1, s) for s in ("train", "val")])
    assert linear.run(ENCODERS, rows, job, **OPTIONS) == {}


# ------------------------------------------------------------------------------------- presets


def test_what_is_given_wins_over_the_preset():
    result = linear.settings("byol", epochs=3, lr=0.5, batch=None)
    assert (result["epochs"], result["lr"], result["batch"], result["nesterov"]) == (
        3,
        0.5,
        1024,
        True,
    )
    moco = linear.settings("moco")
    assert (moco["lr"], moco["epochs"], moco["milestones"]) == (30.0, 100, (60, 80))
    assert (moco["schedule"], moco["weight_decay"], moco["nesterov"]) == ("step", 0.0, False)
    assert linear.settings("mscn")["weight_decay"] == 1e-6


def test_a_cosine_falls_from_the_rate_to_zero():
    course = ClassifierSchedule(batch=8, epochs=4, schedule="cosine")
    shares = [course.rate_share(step, 2) for step in range(8)]
    # 0.5 * (1 + cos(pi * done / 8)): at a quarter 0.853553, half way 0.5
    assert (shares[0], shares[2], shares[4]) == pytest.approx((1.0, 0.853553, 0.5))
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < 0.05


@pytest.mark.parametrize("preset", ["mscn", "simclr"])
def test_another_preset_has_a_metric_of_its_own(rows, job, preset):
    result = linear.run(ENCODERS, rows, job, preset=preset, images="resident", epochs=2)
    assert set(result) == {f"linear_{preset}_top1", f"other_linear_{preset}_top1"}


def test_of_several_rates_the_best_on_held_out_images_trains_on_all(rows, job, monkeypatch):
    trained = []
    train = classifier.train

    def watched(model, loss, optimizer, manifest, ids, *rest):
        rates = [group["lr"] * 256 / min(8, len(ids)) for group in optimizer.param_groups]
        trained.append((len(ids), rates))
        return train(model, loss, optimizer, manifest, ids, *rest)

    monkeypatch.setattr(classifier, "train", watched)
    options = OPTIONS | {"preset": "byol", "lr": (1e-9, 50.0, 1e-8), "epochs": 12}
    result = linear.run(ENCODERS, rows, job, **options)
    # 24 labelled images of two classes: one tenth of twelve is one held out of each
    assert trained == [(22, pytest.approx([1e-9, 50.0, 1e-8])), (24, pytest.approx([50.0]))]
    assert result == {"linear_byol_top1": 100.0, "other_linear_byol_top1": 100.0}


def test_classifiers_side_by_side_learn_as_they_would_alone(rows, job, tmp_path):
    alone = dataclasses.replace(job, work=tmp_path / "alone")
    linear.run(ENCODERS, rows, alone, **OPTIONS)
    ids = rows.ids("train")[rows.labels[rows.ids("train")] >= 0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(linear, "hold_out", lambda *a: (ids, ids))
        linear.run(ENCODERS, rows, job, **(OPTIONS | {"lr": (1e-3, 2.0)}))
    several = checkpoint.load_newest(job.work / "linear-rates", "f" * 12)
    one = _states(alone.work)
    torch.testing.assert_close(
        several["state"]["model"]["1.weight"], one["state"]["model"]["0.weight"]
    )


def test_held_out_images_are_of_every_class_and_stay_out(rows):
    ids = rows.ids("train")[:24]
    held, rest = linear.hold_out(rows, ids, 0.1, seed=0)
    assert sorted(held.tolist() + rest.tolist()) == ids.tolist()
    assert rows.labels[held].tolist().count(0) == rows.labels[held].tolist().count(1) == 1
