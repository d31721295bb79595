"""Measurements between the epochs of pretraining: their values, and that they change nothing."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmask import collapse
from salmask.data.manifest import Manifest
from salmask.encoders import on_disk as encoder_file
from salmask.evaluate import knn, probe
from salmask.evaluate.features import extract_rows
from salmask.evaluate.probe import Probe, subset
from salmask.evaluate.unlabelled import scores
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.probe import ProbeConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.train import checkpoint
from salmask.train import pretrain as loop
from tests.conftest import Labelled
from tests.helpers.states import differences

EPOCHS, PER_EPOCH = 4, 3
RESULTS = ("encoder.safetensors", "encoder.json", "projector.safetensors", "history.csv")


def config(**train: Any) -> RunConfig:
    return RunConfig(
        "toy",
        EncoderConfig("resnet10", 8, "small2"),
        ViewConfig(size=16, grid=4),
        Choice("high_pass", {"where": "random", "hard_negative": None}),
        Choice("moco", {"dim": 8, "hidden": 8, "queue": 64, "bn_group": 4}),
        TrainConfig(
            **{"epochs": EPOCHS, "warmup_epochs": 1, "batch": 8, "lr": 0.01, "optimizer": "adamw"}
            | {"images": "resident"}
            | train
        ),
    )


@pytest.fixture
def manifest(make_manifest: Callable[[list[Labelled]], Manifest]) -> Manifest:
    return make_manifest(images([0, 1]))


def images(labels: list[int]) -> list[Labelled]:
    """24 training images, 12 of `val`, 12 of another split, with these labels in turn."""
    rng = np.random.default_rng(0)
    splits = ["other"] * 12 + ["train"] * 24 + ["val"] * 12
    return [
        (rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), labels[n % len(labels)], split)
        for n, split in enumerate(splits)
    ]


def train(
    folder: Path, name: str, job: Job, settings: ProbeConfig | None, run: RunConfig | None = None
) -> Path:
    """Trains the run in the folder `name`, or continues there. Returns the output folder."""
    run, out = run or config(), folder / name / "out"
    job = dataclasses.replace(job, out=out, work=folder / name / "work", checkpoint_minutes=0)
    inputs = loop.Inputs(folder / "data", folder / "no store")
    loop.pretrain(run, inputs, job, Probe(run, settings, job))
    return out


def test_the_training_ends_in_the_same_bytes(manifest, tmp_path, job):
    plain = train(tmp_path, "plain", job, None)
    state = torch.get_rng_state()
    probed = train(tmp_path, "probed", job, ProbeConfig(every=1, images=10))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 1
    for name in RESULTS:
        assert (plain / name).read_bytes() == (probed / name).read_bytes(), name
    last = [checkpoint.load_newest(out.parent / "work", job.fingerprint) for out in (plain, probed)]
    assert [part["state"].pop("probe")["rows"] == [] for part in last] == [True, False]
    assert differences(*last) == []
    assert not (plain / "probe.csv").exists()
    epochs = [row["epoch"] for row in collapse.read_rows(probed / "probe.csv")]
    assert epochs == list(range(EPOCHS + 1))


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize(
    ("step", "measuring"), [(2, False), (3, False), (12, False), (0, True), (6, True), (12, True)]
)
def test_a_killed_run_neither_loses_nor_doubles_rows(
    manifest, tmp_path, job, monkeypatch, step, measuring
):
    settings = ProbeConfig(every=1, images=10)
    calm = train(tmp_path, "calm", job, settings)
    save, measure, saved = checkpoint.save, probe.measure, 0
    write = checkpoint.Writer.write

    def dying_save(folder: Path, number: int, state: dict[str, Any]) -> Path:
        nonlocal saved
        path, saved = save(folder, number, state), number
        if number == step and not measuring:
            raise Killed
        return path

    def waiting_write(writer: checkpoint.Writer, *arguments: Any) -> None:
        write(writer, *arguments)
        writer.wait()  # so that `saved` does not depend on the speed of the thread

    def dying_measure(*arguments: Any) -> dict[str, float]:
        if measuring and saved >= step:
            raise Killed
        return measure(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save", dying_save)
        patched.setattr(checkpoint.Writer, "write", waiting_write)
        patched.setattr(probe, "measure", dying_measure)
        train(tmp_path, "killed", job, settings)
    killed = train(tmp_path, "killed", job, settings)
    for name in (*RESULTS, "probe.csv"):
        assert (killed / name).read_bytes() == (calm / name).read_bytes(), name


def test_rows_come_from_the_checkpoint(manifest, tmp_path, job, monkeypatch):
    """A damaged probe.csv is written again."""
    settings = ProbeConfig(every=1, images=10)
    calm = (train(tmp_path, "calm", job, settings) / "probe.csv").read_bytes()
    out = train(tmp_path, "run", job, settings)
    (out / "probe.csv").write_bytes(calm.replace(b"1", b"2"))
    assert (train(tmp_path, "run", job, settings) / "probe.csv").read_bytes() == calm


def test_a_resumed_run_may_have_other_settings(manifest, tmp_path, job, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(probe, "measure", lambda *_: killed_at_the_third())
        calls = iter([{"rankme": 5.0}, {"rankme": 6.0}])

        def killed_at_the_third() -> dict[str, float]:
            try:
                return next(calls)
            except StopIteration:
                raise Killed from None

        train(tmp_path, "run", job, ProbeConfig(every=1))
    rows = collapse.read_rows(train(tmp_path, "run", job, ProbeConfig(every=3)) / "probe.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 3, EPOCHS]
    assert [row["rankme"] for row in rows[:2]] == [5, 6]


def test_a_measurement_is_that_of_the_exported_encoder(manifest, tmp_path, job):
    out = train(tmp_path, "run", job, ProbeConfig(every=9, images=10))
    first, last = collapse.read_rows(out / "probe.csv")
    assert (first["epoch"], last["epoch"]) == (0, EPOCHS)
    encoder, head = (f(out, job.device) for f in (encoder_file.load, encoder_file.load_projector))
    bank, queries = (
        extract_rows(encoder, manifest, subset(manifest.ids(split), 10), job)
        for split in ("train", "val")
    )
    right = knn.predict(bank, queries.features, 20, 0.07) == queries.labels
    expected = scores(head(queries.features)) | {"knn_top1": 100 * right.double().mean().item()}
    assert last == pytest.approx(
        {"epoch": EPOCHS, "step": EPOCHS * PER_EPOCH, "images": 10, "train_images": 10} | expected,
        rel=1e-5,
    )
    assert first != last | {"epoch": 0, "step": 0}


def test_without_labels_rank_and_spread_are_measured(make_manifest, tmp_path, job):
    make_manifest(images([-1]), ())
    rows = collapse.read_rows(train(tmp_path, "run", job, ProbeConfig()) / "probe.csv")
    assert [row["epoch"] for row in rows] == [0, EPOCHS]
    assert all(row.keys() == {"epoch", "step", "images", "rankme", "spread"} for row in rows)


def test_a_subset_is_fixed_and_in_order():
    ids = torch.arange(100, 400)
    chosen = subset(ids, 60)
    assert torch.equal(chosen, subset(ids, 60)) and torch.equal(chosen, chosen.unique())
    assert set(chosen.tolist()) < set(subset(ids, 90).tolist()) <= set(ids.tolist())
    assert len((chosen % 5).unique()) == 5  # not a stride, which could match a period of the labels
    assert torch.equal(subset(ids, 1000), ids)


def test_a_run_that_collapses_is_named(manifest, tmp_path, job, caplog):
    """All weight on decay: every loss stays finite, and every embedding becomes the same."""
    settings = ProbeConfig(every=17, images=10)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, "sound", job, settings, config(epochs=17, lr=0.001))
    assert caplog.messages == []
    out = train(tmp_path, "decayed", job, settings, config(epochs=17, weight_decay=50.0))
    assert all(np.isfinite(row["loss"]) for row in collapse.read_rows(out / "history.csv"))
    assert collapse.signs_of_run(out).keys() == {"rank", "spread"}
    assert len(caplog.messages) == 2 and all(m.startswith("toy: the") for m in caplog.messages)
