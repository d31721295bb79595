"""Pretraining on two processes that share each batch: equal to one process up to rounding, equal to
another two to the bit. A stop signal to one of them stops both, without losing a step."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from salmask.collapse import read_rows
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.errors import InterruptedRunError
from salmask.evaluate.probe import Probe
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.probe import ProbeConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.train import pretrain as loop
from salmask.train import readings

STEPS = 6
NAMES = ("one", "two", "again", "stopped", "stopped late")
CASES = {
    "moco": (
        Choice("moco", {"dim": 8, "hidden": 8, "queue": 64, "bn_group": 4}),
        Choice("none", {}),
    ),
    "byol": (
        Choice("byol", {"dim": 8, "hidden": 8, "bn_group": 0}),
        Choice("adios", {"lr": 0.001}),
    ),
    "supervised": (
        Choice("supervised", {"classes": 2, "bn_group": 4}),
        Choice("high_pass", {"where": "random", "hard_negative": None}),
    ),
}


def config(case: str) -> RunConfig:
    framework, mask = CASES[case]
    train = TrainConfig(epochs=2, warmup_epochs=1, batch=8, lr=0.001, images="resident")
    encoder = EncoderConfig("resnet10", 8, "small2")
    return RunConfig("run", encoder, ViewConfig(size=16, grid=4), mask, framework, train)


def pretrain(case: str, inputs: loop.Inputs, job: Job) -> None:
    """Trains a run, which all processes measure after each epoch."""
    probe = Probe(config(case), ProbeConfig(every=1), job)
    loop.pretrain(config(case), inputs, job, probe)


def one_of_two(rank: int, port: int, runs: list[tuple[str, loop.Inputs, Job]]) -> None:
    """One of two processes: trains each run; in the folders `stopped`, with an interruption."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for case, inputs, job in runs:
        if job.out.name == "stopped":
            stopped(rank, case, inputs, job)
        if job.out.name == "stopped late":
            stopped_late(rank, case, inputs, job)
        pretrain(case, inputs, job)
    dist.destroy_process_group()


def stopped(rank: int, case: str, inputs: loop.Inputs, job: Job) -> None:
    steps, honest = 0, loop.set_rates

    def ask_in_the_fourth(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4 and rank == 1:  # the one that writes no checkpoint
            signal.raise_signal(signal.SIGTERM)
        honest(*arguments)

    loop.set_rates = ask_in_the_fourth
    # Both read the signal with the metrics of the fourth step, after the launch of the fifth.
    with pytest.raises(InterruptedRunError, match="step 5 of 6"):
        pretrain(case, inputs, job)
    loop.set_rates = honest
    assert steps == 5


def stopped_late(rank: int, case: str, inputs: loop.Inputs, job: Job) -> None:
    """The signal arrives just after both have agreed to continue after the third step."""
    steps, honest = 0, readings.reduce_max

    def agree(number: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        honest(number)
        if steps == 3 and rank == 0:
            signal.raise_signal(signal.SIGUSR2)

    readings.reduce_max = agree
    with pytest.raises(InterruptedRunError, match="step 5 of 6") as stop:
        pretrain(case, inputs, job)
    readings.reduce_max = honest
    assert stop.value.number == signal.SIGUSR2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Trained = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Folders of finished runs: by one process, by two, by two again, and by two with stops."""
    made: Trained = {}
    shared = []
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        inputs = loop.Inputs(a_manifest(folder), folder / "no store")
        made[case] = {name: folder / name for name in NAMES}
        for name, out in made[case].items():
            job = Job("f" * 12, folder / f"{name} work", out, torch.device("cpu"), 0, 0)
            if name == "one":
                pretrain(case, inputs, job)
            else:
                shared.append((case, inputs, job))
    torch.multiprocessing.spawn(one_of_two, (free_port(), shared), nprocs=2)  # type: ignore[attr-defined]
    return made


def a_manifest(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "data/images").mkdir(parents=True)
    files = []
    for index in range(24):
        pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"data/images/{index:03d}.png")
        files.append(ListedFile(f"{index:03d}.png", index % 2, "train"))
    write_manifest(Listing(folder / "data/images", ("a", "b"), files), "toy", folder / "data", 0)
    return folder / "data"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(trained: Trained, case: str) -> None:
    one, two = (load_file(trained[case][name] / "encoder.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    for file in ("history.csv", "probe.csv"):
        rows = [read_rows(trained[case][name] / file) for name in ("one", "two")]
        for theirs, ours in zip(*rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", NAMES[2:])
def test_two_processes_end_in_the_same_bytes(trained: Trained, case: str, other: str) -> None:
    folders = trained[case]
    files = sorted(path.name for path in folders["two"].iterdir())
    assert ("masker.safetensors" in files) is (CASES[case][1].name == "adios")
    for name in files:
        assert (folders["two"] / name).read_bytes() == (folders[other] / name).read_bytes(), name
