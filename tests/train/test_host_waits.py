"""How often the host waits for the device in a step, counted on the simulated device."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from salmask.data.loader import Crops
from salmask.data.views import branch_names
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.saliency.store import SaliencyStore
from salmask.train import engine
from salmask.train.batches import make_batch
from salmask.train.pretrain import Learner
from tests.helpers import pretended

BATCH, SIDE, STEPS = 4, 16, 2
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "moco": ("moco", "high_pass", {"dim": 8, "hidden": 8, "queue": 8, "bn_group": 2}),
    "simclr": ("simclr", "blur", {"dim": 8, "hidden": 8, "bn_group": 2}),
    "byol": ("byol", "adios", {"dim": 8, "hidden": 8, "bn_group": 2}),
    "simsiam": ("simsiam", "none", {"dim": 8, "hidden": 8, "bn_group": 0}),
    "supervised": ("supervised", "none", {"classes": 2, "bn_group": 0}),
}


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, int]]]:
    """The waits of each step, by framework: those between the starts of two steps."""
    folder = tmp_path_factory.mktemp("waits")
    # in a process of its own, because the device stays registered
    torch.multiprocessing.spawn(count, (folder,), nprocs=1)  # type: ignore[attr-defined]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CASES}


def count(_: int, folder: Path) -> None:
    with pretended.pretence():
        for name in CASES:
            (folder / f"{name}.json").write_text(json.dumps(waits_of(name, folder / name)))


def waits_of(name: str, folder: Path) -> list[Counter[str]]:
    device = torch.device(pretended.NAME)
    framework, mask, options = CASES[name]
    run = RunConfig(
        "run",
        EncoderConfig("resnet10", 8, "small2"),
        ViewConfig(size=SIDE, grid=4),
        Choice(mask, {}),
        Choice(framework, options),
        TrainConfig(epochs=1, warmup_epochs=0, batch=BATCH),
    )
    learner = Learner(run, 0, STEPS, device)
    store = SaliencyStore({}, {224: torch.rand(BATCH, 7, 7).to(device)})
    labels = (torch.arange(BATCH) % 2).to(device) if learner.wiring.classes else None
    names = branch_names(learner.mask.extra_views)
    pixels = torch.rand(BATCH, 3, SIDE, SIDE) * 255
    parts = (pixels, torch.tensor([0.1, 0.1, 0.5, 0.5]).expand(BATCH, 4), torch.zeros(BATCH) > 0)
    crops = Crops(0, 0, torch.arange(BATCH), *(dict.fromkeys(names, part) for part in parts))
    crops = crops.to(device)
    needs = store if learner.mask.reads_saliency else None
    counted: list[Counter[str]] = []

    def batches(first: int) -> Iterator[Crops]:
        for _ in range(first, STEPS):
            pretended.WAITS.clear()
            yield crops
            counted.append(Counter(pretended.WAITS))

    def step(batch: Crops, number: int) -> dict[str, torch.Tensor]:
        return learner.step(make_batch(batch, run, 0, needs, labels), number)

    loop = engine.Loop("run", STEPS, {}, batches, step, rate=lambda step: 0.0)
    engine.train(loop, Job("f" * 12, folder, folder, device, 0), folder)
    return counted


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_from_the_device_once(
    name: str, waits: dict[str, list[dict[str, int]]]
) -> None:
    first, second = waits[name]
    read = {"download in readings.py:__init__": 1}
    assert second == read
    # The first step also copies constants to the device.
    assert {what: n for what, n in first.items() if not what.startswith("upload")} == read
