"""Fine-tuning: the choice of labels, the trained parameters, and resuming."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.errors import UserError
from salmask.evaluate import classifier, features, finetune
from salmask.evaluate.features import top
from salmask.evaluate.finetune import PublishedList
from salmask.evaluate.subsets import balanced
from salmask.params.encoder import EncoderConfig
from salmask.train import checkpoint
from tests.helpers.states import differences

OPTIONS = {"lr": 0.05, "head_lr": 2.0, "batch": 8, "epochs": 4, "images": "resident"}
OPTIONS |= {"milestones": (2, 3), "shares": (100,)}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def encoders(spec_filter: dict | None = None) -> dict[str, Encoder]:
    made = Encoder(network(), EncoderConfig(), InputSpec(8, 9, spec_filter)).eval()
    return {"trained": made.requires_grad_(False)}


def coloured(classes: int = 2, each: int = 12) -> list:
    """Colours of `classes` brightnesses in two splits, and images without a label."""
    images = []
    for split in ("train", "val", "other"):
        for i in range(classes * each):
            pixels = np.full((10, 12, 3), 40, np.uint8)
            pixels[..., i % 2] = 60 + (190 // classes) * (i % classes) + i // classes
            images.append((pixels, i % classes, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    return images


@pytest.fixture
def rows(make_manifest):
    return make_manifest(coloured())


# -------------------------------------------------------------------------------------- labels


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 99))
def test_subsets_hold_as_many_of_every_class_and_grow(labels, each, seed):
    labels = torch.tensor(labels)
    ids = torch.arange(len(labels)) * 3 + 1
    order = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    result = balanced(ids, labels, each, order)
    for label in labels.unique().tolist():
        of_class = set(ids[labels == label].tolist())
        taken = of_class & set(result.tolist())
        assert len(taken) == min(each, len(of_class))
        left = [order[(i - 1) // 3] for i in of_class - taken]
        assert all(order[(i - 1) // 3] <= min(left, default=9) for i in taken)
    assert result.tolist() == sorted(set(result.tolist()))
    assert set(result.tolist()) <= set(balanced(ids, labels, each + 1, order).tolist())


def test_a_share_is_of_every_class_at_least_one_image(make_manifest):
    rows = make_manifest(coloured(4, 12), tuple("abcd"))
    counts = {s: finetune.rows_of_share(rows, s, 0) for s in (1, 25, 50, 100)}
    assert [len(ids) for ids in counts.values()] == [4, 12, 24, 48]
    for share, ids in counts.items():
        assert rows.labels[ids].bincount().tolist() == [max(1, 12 * share // 100)] * 4
        assert (rows.splits[ids] == "train").all()
    assert set(counts[25].tolist()) < set(counts[50].tolist())
    assert finetune.rows_of_share(rows, 25, 1).tolist() != counts[25].tolist()


def listed(path, *names: str) -> PublishedList:
    path.write_text("\n".join(names) + "\n")
    return PublishedList(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_published_list_is_taken_by_path_or_name(rows, tmp_path):
    result = finetune.rows_of_share(
        rows, 1, 0, listed(tmp_path / "1.txt", "003.png", "000.png", "")
    )
    assert result.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["003.png", "nowhere.png"], "1 of its 2 names are no labelled training image"),
        (["030.png", "001.png"], "such as 030.png"),  # a validation image
        (["000.png", "002.png"], "fewer than two classes"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(rows, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        finetune.rows_of_share(rows, 1, 0, listed(tmp_path / "1.txt", *names))


def test_a_list_that_changed_or_is_missing_is_refused(rows, tmp_path):
    good = listed(tmp_path / "1.txt", "000.png", "001.png")
    good.path.write_text("000.png\n003.png\n")
    with pytest.raises(UserError, match="sha256"):
        finetune.rows_of_share(rows, 1, 0, good)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        finetune.rows_of_share(rows, 1, 0, PublishedList(tmp_path / "2.txt", "0" * 64))


def test_presets_have_rates_for_each_share():
    mixmask = finetune.rates_of_shares("mixmask", None, None, None)
    assert list(mixmask.items()) == [(1, (0.001, 1.0)), (10, (0.001, 0.1)), (100, (0.001, 0.01))]
    assert finetune.rates_of_shares("mscn", None, None, None) == {1: (0.002, 0.5)}
    assert finetune.rates_of_shares("mscn", (1,), None, 3.0) == {1: (0.002, 3.0)}
    with pytest.raises(UserError, match="mscn has no rates for 10% of the labels"):
        finetune.rates_of_shares("mscn", (1, 10), None, None)


# ------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("images", ["stream", "resident"])
def test_separable_colours_are_classified_in_every_split(rows, job, images):
    options = OPTIONS | {"images": images, "epochs": 15, "milestones": (12,)}
    result = finetune.run(encoders(), rows, job, **options)
    assert result == {"finetune100_top1": 100.0, "other_finetune100_top1": 100.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_memory_train_the_same_network(rows, job, workers, monkeypatch):
    trained = []
    train = classifier.train
    monkeypatch.setattr(
        classifier, "train", lambda model, *more: trained.append(model) or train(model, *more)
    )
    for images in ("stream", "auto"):
        own = dataclasses.replace(job, work=job.work / images, workers=workers)
        finetune.run(encoders(), rows, own, **(OPTIONS | {"images": images}))
    assert differences(*(model.state_dict() for model in trained)) == []


def test_top5_is_given_for_more_than_five_classes(make_manifest, job):
    rows = make_manifest(coloured(6, 4), tuple("abcdef"))
    result = finetune.run(encoders(), rows, job, **(OPTIONS | {"shares": (50, 100)}))
    assert set(result) == {
        f"{prefix}finetune{share}_{metric}"
        for prefix in ("", "other_")
        for share in (50, 100)
        for metric in ("top1", "top5")
    }
    assert all(result[name.replace("top1", "top5")] >= result[name] for name in result)


def test_top_k_by_hand():
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 2, 3]])
    labels = torch.tensor([0, 1, 0])
    assert top(logits, labels, 1) == pytest.approx(100 / 3)
    assert top(logits, labels, 2) == pytest.approx(200 / 3)


def _state(job, share=100) -> dict:
    return checkpoint.load_newest(job.work / f"finetune{share}", "f" * 12)


def test_trunk_head_and_statistics_learn_and_the_given_encoder_does_not(rows, job):
    given = encoders()
    before = {k: v.clone() for k, v in given["trained"].state_dict().items()}
    finetune.run(given, rows, job, **OPTIONS)
    assert all(torch.equal(v, before[k]) for k, v in given["trained"].state_dict().items())
    after = _state(job)["state"]["model"]
    for name in ("0.weight", "1.weight", "1.running_mean"):
        assert not torch.equal(after[f"0.network.{name}"], before[f"network.{name}"]), name
    assert after["0.network.1.num_batches_tracked"] == 4 * 3  # in training mode in every step


def test_trunk_and_head_have_rates_of_their_own(rows, job, monkeypatch):
    rates = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, step, state: rates.append(
            [group["lr"] for group in state["state"]["optimizer"]["param_groups"]]
        ),
    )
    finetune.run(encoders(), rows, dataclasses.replace(job, checkpoint_minutes=0), **OPTIONS)
    # 0.05 and 2.0, times 8 / 256; a fifth from epoch 2, a 25th from epoch 3; at each of three steps
    expected = [[0.0015625 * s, 0.0625 * s] for s in (1, 1, 0.2, 0.04) for _ in range(3)]
    assert rates == [pytest.approx(pair) for pair in expected]


def test_a_trunk_at_rate_zero_stays_and_the_head_learns(rows, job):
    finetune.run(encoders(), rows, job, **(OPTIONS | {"lr": 0.0}))
    after, before = _state(job)["state"]["model"], encoders()["trained"].state_dict()
    assert torch.equal(after["0.network.0.weight"], before["network.0.weight"])
    assert after["1.weight"].abs().max() > 0.1


def test_an_interrupted_training_ends_in_the_same_bytes(rows, job, tmp_path, monkeypatch):
    options = OPTIONS | {"shares": (50, 100)}
    whole = dataclasses.replace(job, work=tmp_path / "whole")
    broken = dataclasses.replace(job, work=tmp_path / "broken", checkpoint_minutes=0)
    expected = finetune.run(encoders(), rows, whole, **options)
    save = checkpoint.save

    def dies_late(folder, step, state):
        save(folder, step, state)
        if folder.name == "finetune100" and step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dies_late)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(encoders(), rows, broken, **options)
    assert (_state(broken, 50)["step"], _state(broken)["step"]) == (4, 8)
    torch.manual_seed(99)
    assert finetune.run(encoders(), rows, broken, **options) == expected
    for share in (50, 100):
        a, b = _state(whole, share), _state(broken, share)
        assert differences(a, b) == []


def test_the_encoders_filter_applies_to_what_it_learns_from(rows, job, tmp_path):
    filtered = encoders({"name": "high_pass", "kernel": 5, "sigma": 1.0})
    plain = finetune.run(encoders(), rows, job, **OPTIONS)
    other = dataclasses.replace(job, work=tmp_path / "filtered")
    result = finetune.run(filtered, rows, other, **OPTIONS)
    # without the filter an encoder could classify uniform colours; with it, its input is zero
    assert plain["finetune100_top1"] > 75 and result["finetune100_top1"] == pytest.approx(50)


def test_scores_do_not_depend_on_the_batch_that_they_are_counted_in(rows, job, monkeypatch):
    expected = finetune.run(encoders(), rows, job, **OPTIONS)
    monkeypatch.setattr(features, "BATCH", 5)
    assert finetune.run(encoders(), rows, job, **OPTIONS) == expected


def test_without_labels_there_is_nothing_to_score(make_manifest, job):
    rows = make_manifest([(np.zeros((8, 8, 3), np.uint8), -1, s) for s in ("train", "val")])
    assert finetune.run(encoders(), rows, job, **OPTIONS) == {}
