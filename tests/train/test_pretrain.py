"""One step of a run: its precisions, and configurations that do not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from salmask import frameworks
from salmask.data.loader import Crops
from salmask.data.views import branch_names
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.shapes import Views
from salmask.train import pretrain as module
from salmask.train.batches import make_batch
from salmask.train.pretrain import Learner

BATCH, SIDE = 8, 32


def config(mask: str, **train: Any) -> RunConfig:
    return RunConfig(
        "run",
        EncoderConfig("resnet10", 8, "small2"),
        ViewConfig(size=SIDE, grid=4),
        Choice(mask, {}),
        Choice("moco", {"dim": 8, "hidden": 8, "queue": 64, "bn_group": 4}),
        TrainConfig(**({"epochs": 2, "warmup_epochs": 1, "batch": BATCH, "lr": 0.01} | train)),
    )


def crops(extra_views: int) -> Crops:
    generator = torch.Generator().manual_seed(0)
    names = branch_names(extra_views)
    pixels = {n: 255 * torch.rand(BATCH, 3, SIDE, SIDE, generator=generator) for n in names}
    boxes = dict.fromkeys(names, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(BATCH, 4))
    flips = dict.fromkeys(names, torch.zeros(BATCH, dtype=torch.bool))
    return Crops(0, 0, torch.arange(BATCH), pixels, boxes, flips)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_networks_alone_compute_in_half_precision(precision: str) -> None:
    run = config("mscn", precision=precision)
    learner = Learner(run, 0, 4, torch.device("cpu"))
    batch = make_batch(crops(learner.mask.extra_views), run, 0, None)
    recorded: list[Views] = []
    learner.framework.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    dtypes = set()
    first = learner.framework.get_submodule("encoder.layer1")
    first.register_forward_hook(lambda _, inputs, output: dtypes.add(output.dtype))
    metrics = learner.step(batch, 1)
    assert dtypes == {getattr(torch, precision)}
    assert metrics["loss"] > 0
    expected = batch.views(learner.mask)  # high-pass filtered, without autocast
    for made, outside in zip(recorded[0].images, expected.images, strict=True):
        assert torch.equal(made, outside)


@pytest.mark.parametrize(
    ("options", "batch", "count", "message"),
    [
        ({"bn_group": 4}, 8, 3, r"train\.batch: 8 cannot be shared evenly by 3 processes"),
        (
            {"bn_group": 4},
            8,
            4,
            r"framework\.bn_group: 4 does not divide the 2 images of each of 4 processes "
            r"\(train\.batch is 8\); choose 2, or 0",
        ),
        ({"bn_group": 6}, 24, 3, r"choose 2, or 0 for statistics of the whole batch"),
        ({}, 32, 2, r"framework\.bn_group: 32 does not divide the 16 images"),  # the default
    ],
)
def test_shares_that_do_not_fit_are_refused(
    options: dict[str, Any], batch: int, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config("none", batch=batch)
    given = {"dim": 8, "hidden": 8, "queue": 8 * batch} | options
    for place in (module, frameworks):
        monkeypatch.setattr(place, "world_size", lambda: count)
    with pytest.raises(UserError, match=message):
        Learner(replace(run, framework=Choice("moco", given)), 0, 4, torch.device("cpu"))
