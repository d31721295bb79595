import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from salmask.config import EncoderConfig
from salmask.encoder_file import Encoder, InputSpec
from salmask.evaluate import linear
from salmask.train import checkpoint

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
def test_separable_colours_are_told_apart_in_every_split(rows, job, images):
    found = linear.run(ENCODERS, rows, job, **(OPTIONS | {"images": images, "epochs": 12}))
    assert found == {"linear_top1": 100.0, "other_linear_top1": 100.0}


def _states(folder) -> dict:
    return checkpoint.load_newest(folder, "f" * 12)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(rows, job, tmp_path, monkeypatch):
    whole = dataclasses.replace(job, work=tmp_path / "whole")
    broken = dataclasses.replace(job, work=tmp_path / "broken")
    wanted = linear.run(ENCODERS, rows, whole, **OPTIONS)
    save = checkpoint.save

    def dies_after_two(folder, step, state):
        save(folder, step, state)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dies_after_two)
        with pytest.raises(KeyboardInterrupt):
            linear.run(ENCODERS, rows, broken, **OPTIONS)
    assert _states(broken.work)["epoch"] == 2
    assert linear.run(ENCODERS, rows, broken, **OPTIONS) == wanted
    a, b = _states(whole.work), _states(broken.work)
    assert a["epoch"] == b["epoch"] == 4
    for key in ("weight", "bias"):
        assert torch.equal(a["model"][key], b["model"][key])
    for x, y in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(x["momentum_buffer"], y["momentum_buffer"])


def test_a_finished_training_only_scores_again(rows, job, monkeypatch):
    wanted = linear.run(ENCODERS, rows, job, **OPTIONS)
    monkeypatch.setattr(checkpoint, "save", lambda *a: pytest.fail("trained again"))
    assert linear.run(ENCODERS, rows, job, **OPTIONS) == wanted


def test_the_rate_scales_with_the_batch_and_falls_at_milestones(rows, job, monkeypatch):
    rates = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, step, state: rates.append(state["optimizer"]["param_groups"][0]["lr"]),
    )
    linear.run(ENCODERS, rows, job, **OPTIONS)
    # 2.0 * 8 / 256 = 0.0625, a tenth of it from epoch 2, a hundredth from epoch 3
    assert rates == pytest.approx([0.0625, 0.0625, 0.00625, 0.000625])


def test_the_rate_scales_with_the_batch_there_is(rows, job, monkeypatch):
    rates = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, step, state: rates.append(state["optimizer"]["param_groups"][0]["lr"]),
    )
    linear.run(ENCODERS, rows, job, **(OPTIONS | {"batch": 256, "milestones": ()}))
    assert rates == pytest.approx([2.0 * 24 / 256] * 4)  # 24 labelled training images


def test_the_seed_decides_the_result_and_repeats_it(rows, job, tmp_path):
    def weights(seed: int, name: str) -> torch.Tensor:
        some = dataclasses.replace(job, seed=seed, work=tmp_path / name)
        linear.run(ENCODERS, rows, some, **OPTIONS)
        return _states(some.work)["model"]["weight"]

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
