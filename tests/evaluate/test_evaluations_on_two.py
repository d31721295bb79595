"""Every protocol on two processes: features have the same bits as those of one process, scores are
equal, trainings are equal up to rounding, and an interrupted training ends in the same bytes."""

import csv
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from salmask import distributed
from salmask.data import manifest as manifests
from salmask.data.manifest import Manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.heads import mlp
from salmask.encoders.on_disk import InputSpec
from salmask.errors import InterruptedRunError, UserError
from salmask.evaluate import (
    feature_cache,
    features,
    finetune,
    knn,
    linear,
    linear_fast,
    transfer,
    variance,
)
from salmask.evaluate.transfer import SgdOptions
from salmask.evaluate.variance import RunViews
from salmask.files import tree_digest
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.train import checkpoint, readings
from tests.helpers.tiny_encoders import saved

CONFIG = EncoderConfig("resnet10", 8, "small2")
SIZE, CHUNK = 16, 6
COUNTS = {"train": 40, "val": 19, "few": 3}  # 40: no multiple of CHUNK; 3: nothing for the second
COURSE: dict[str, Any] = {"epochs": 3, "milestones": (2,), "images": "resident"}
TRAINED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "linear": (linear.run, COURSE | {"lr": 0.5, "batch": 16}),
    "linear rates": (linear.run, COURSE | {"lr": (0.1, 0.5), "batch": 8, "preset": "byol"}),
    "finetune": (finetune.run, COURSE | {"lr": 0.02, "head_lr": 0.5, "batch": 8, "shares": (50,)}),
    "transfer sgd": (transfer.run, {"sgd": {"toy": SgdOptions(lr=0.5, batch=8, epochs=2)}}),
}
CACHED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "knn": (knn.run, {"k": (3, 20)}),
    "knn stored": (knn.run, {"k": (3, 20)}),
    "linear_fast": (linear_fast.run, {"iterations": 30}),
    "linear_fast views": (linear_fast.run, {"views": 2, "iterations": 30, "images": "resident"}),
    "transfer": (transfer.run, {"l2_steps": 3, "iterations": 30}),
    "variance": (variance.run, {"views": 3, "batch": 5, "images": "resident"}),
}
PROTOCOLS = TRAINED | CACHED


def score(name: str, folder: Path) -> None:
    """Writes the metrics and, for k-NN, the features to `folder`."""
    run, options = PROTOCOLS[name]
    stored = folder / "features" if "stored" in name else None
    job = Job("f" * 12, folder / "work", folder, torch.device("cpu"), 0, 0, features=stored)
    rows = manifests.load(folder.parents[1] / "data")
    encoders = {"trained": encoder_file.load(folder.parents[1] / "encoder", job.device)}
    beside = [run_views(folder.parents[1])] if name == "variance" else []
    result = run(encoders, rows, job, *beside, **options)
    (folder / f"metrics-{distributed.rank()}.json").write_text(json.dumps(result))
    if name == "knn":
        recorded = {
            split: features.extract(encoders["trained"], rows, split, job) for split in COUNTS
        }
        by_split = {split: result.features for split, result in recorded.items()}
        torch.save(by_split, folder / f"features-{distributed.rank()}.pt")


def run_views(folder: Path) -> RunViews:
    view = ViewConfig(size=SIZE, grid=4)
    return RunViews("run", view, Choice("none", {}), folder / "no store", folder / "encoder")


def one_of_two(rank: int, port: int, root: Path) -> None:
    torch.set_num_threads(1)
    features.BATCH, feature_cache._BATCHES = CHUNK, 2
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in PROTOCOLS:
        score(name, root / "two" / name)
    for name in TRAINED:
        torn(name, root / "torn" / name)
        score(name, root / "torn" / name)
    uneven(root / "uneven")
    dist.destroy_process_group()


def torn(name: str, folder: Path) -> None:
    """One of the processes gets a stop signal in the middle of an epoch."""
    reduce_max, steps = readings.reduce_max, 0

    def receive_in_the_fifth(number: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps == 5 and distributed.rank() == 1:  # the process that writes no checkpoint
            number.fill_(2 * signal.SIGTERM)
        reduce_max(number)

    readings.reduce_max = receive_in_the_fifth
    with pytest.raises(InterruptedRunError, match="a checkpoint is saved"):
        score(name, folder)
    readings.reduce_max = reduce_max
    newest = [checkpoint.saved(path)[0].stem for path in (folder / "work").iterdir()]
    # They read the signal after the launch of the next step, or at the end of an epoch.
    assert {"step-000000005", "step-000000006"} & set(newest)


def uneven(folder: Path) -> None:
    run, options = TRAINED["linear"]
    job = Job("f" * 12, folder, folder, torch.device("cpu"), 0, 0)
    rows = manifests.load(folder.parent / "data")
    encoders = {"trained": encoder_file.load(folder.parent / "encoder", job.device)}
    with pytest.raises(UserError, match="a batch of 9 of 40 images cannot be shared evenly by 2"):
        run(encoders, rows, job, **options | {"batch": 9})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one process, of two, and of two that were interrupted."""
    root = tmp_path_factory.mktemp("evaluations")
    made_of_colours(root / "data")
    saved(root / "encoder", CONFIG, InputSpec(SIZE, SIZE + 2, None))
    torch.manual_seed(0)
    projector = mlp([CONFIG.width * 8, 6, 5], norm=True)
    encoder_file.save_projector(nn.ModuleDict({"projector": projector}), root / "encoder")
    for kind, names in (("one", PROTOCOLS), ("two", PROTOCOLS), ("torn", TRAINED)):
        for name in names:
            (root / kind / name).mkdir(parents=True)
    threads, sizes = torch.get_num_threads(), (features.BATCH, feature_cache._BATCHES)
    torch.set_num_threads(1)
    features.BATCH, feature_cache._BATCHES = CHUNK, 2
    for name in PROTOCOLS:
        score(name, root / "one" / name)
    torch.set_num_threads(threads)
    features.BATCH, feature_cache._BATCHES = sizes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    torch.multiprocessing.spawn(one_of_two, (port, root), nprocs=2)  # type: ignore[attr-defined]
    return root


def made_of_colours(folder: Path) -> Manifest:
    """Noise in two colours, which a network classifies with errors."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    files = []
    for split, count in COUNTS.items():
        for i in range(count):
            pixels = rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)
            pixels[..., i % 2] //= 2
            name = f"{len(files):03d}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            files.append(ListedFile(name, i % 2, split))
    write_manifest(Listing(folder / "images", ("a", "b"), files), "toy", folder, 0)
    return manifests.load(folder)


def metrics(folder: Path) -> dict[str, float]:
    """The metrics, which are the same in every process."""
    first, *others = [json.loads(path.read_text()) for path in sorted(folder.glob("metrics-*"))]
    assert all(result == first for result in others)
    return dict(first)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_processes_have_the_scores_of_one(root: Path, name: str) -> None:
    """Fits on features are equal. Trainings are equal up to rounding, so that numbers of correct
    images are equal unless an image lies on the border between two classes."""
    one, two = metrics(root / "one" / name), metrics(root / "two" / name)
    assert one and two == pytest.approx(one, rel=1e-6)
    if name not in TRAINED:
        assert two == one


def test_features_are_those_of_one_process_to_the_bit(root: Path) -> None:
    one = torch.load(root / "one/knn/features-0.pt", weights_only=True)
    for rank in range(2):
        two = torch.load(root / f"two/knn/features-{rank}.pt", weights_only=True)
        for split, count in COUNTS.items():
            assert len(one[split]) == count and torch.equal(one[split], two[split])


def test_stored_features_are_those_of_one_process_to_the_bit(root: Path) -> None:
    one, two = (root / kind / "knn stored" for kind in ("one", "two"))
    assert tree_digest(one / "features") == tree_digest(two / "features")
    assert metrics(one) == metrics(root / "one" / "knn")


def states(folder: Path) -> list[dict[str, Any]]:
    """The last checkpoint of every training, as tensors."""
    result = [
        checkpoint.load_newest(path, "f" * 12) for path in sorted((folder / "work").iterdir())
    ]
    return [state for state in result if state]


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one_does(root: Path, name: str) -> None:
    one, two = (states(root / kind / name) for kind in ("one", "two"))
    assert len(one) == len(two) == (2 if name == "linear rates" else 1)
    for theirs, ours in zip(one, two, strict=True):
        assert theirs["state"]["model"].keys() == ours["state"]["model"].keys()
        for key, tensor in theirs["state"]["model"].items():
            torch.testing.assert_close(
                ours["state"]["model"][key], tensor, atol=1e-5, rtol=1e-4, msg=key
            )
        for a, b in zip(theirs["history"], ours["history"], strict=True):
            assert a | {"loss": 0} == b | {"loss": 0}
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_torn_training_ends_in_the_same_bytes(root: Path, name: str) -> None:
    whole, torn = (root / kind / name for kind in ("two", "torn"))
    assert metrics(torn) == metrics(whole)
    for a, b in zip(states(whole), states(torn), strict=True):
        assert a["step"] == b["step"] and a["history"] == b["history"]
        assert all(torch.equal(v, b["state"]["model"][k]) for k, v in a["state"]["model"].items())
    if name != "transfer sgd":
        assert (whole / "history.csv").read_bytes() == (torn / "history.csv").read_bytes()


def test_a_history_has_a_row_for_each_epoch_of_each_training(root: Path) -> None:
    with (root / "two/linear rates/history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["training"], row["epoch"]) for row in rows] == [
        (name, str(epoch)) for name in ("linear-rates", "linear") for epoch in (1, 2, 3)
    ]
    losses = [float(row["loss"]) for row in rows[3:]]
    assert losses[2] < losses[0]
