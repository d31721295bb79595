"""One step of a run: its precisions, and configurations that do not fit. Untrained encoders."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from salmask import frameworks
from salmask.data.loader import Crops
from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.data.views import branch_names
from salmask.encoders import on_disk
from salmask.errors import UserError
from salmask.frameworks.supervised import Framework
from salmask.job import Job
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.shapes import Views
from salmask.train import pretrain as module
from salmask.train.batches import make_batch
from salmask.train.pretrain import Learner
from tests.helpers.states import differences

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
    ("name", "backend"),
    [
        ("moco", "eager"),  # torch's tracing without a code generator
        ("simclr", "eager"),
        ("byol", "eager"),
        ("simsiam", "eager"),
        ("supervised", "eager"),
        pytest.param("moco", "inductor", marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_compiled_networks_train_the_same(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    options = {"classes": 2} if name == "supervised" else {"dim": 8, "hidden": 8}
    options |= {"bn_group": 4} | ({"queue": 16} if name == "moco" else {})
    run = replace(config("none"), framework=Choice(name, options))
    labels = torch.arange(BATCH) % 2
    weights, recorded = [], []
    for compiled in (False, True):
        changed = replace(run, train=replace(run.train, compile=compiled))
        learner = Learner(changed, 0, 4, torch.device("cpu"))
        batch = make_batch(crops(learner.mask.extra_views), changed, 0, None, labels)
        recorded.append([learner.step(batch, step) for step in range(2)])
        weights.append(learner.framework.state_dict())
    traced = [part._compiled_call_impl for part in learner.framework.children()]
    assert traced and None not in traced
    torch.testing.assert_close(recorded[1], recorded[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-4)


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


# ------------------------------------------------------------------- labels, and untrained encoders


def colours(make_manifest: Any, labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> None:
    made = [(np.full((20, 20, 3), 9 * i, np.uint8), n, "train") for i, n in enumerate(labels)]
    made.append((np.zeros((20, 20, 3), np.uint8), -1, "val"))
    make_manifest(made, classes)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1] * 4, 3, r"framework\.classes: 3, but toy has 2 classes; set `classes: 2`"),
        ([0, 1] * 3 + [-1] * 2, 2, "2 of the 8 training images of toy have no label"),
    ],
)
def test_supervised_training_needs_the_label_of_every_training_image(
    labels: list[int],
    classes: int,
    message: str,
    make_manifest: Any,
    job: Job,
    tmp_path: Path,
) -> None:
    colours(make_manifest, labels)
    run = replace(
        config("none"), framework=Choice("supervised", {"classes": classes, "bn_group": 0})
    )
    with pytest.raises(UserError, match=message):
        module.pretrain(run, module.Inputs(tmp_path / "data", tmp_path / "none"), job)


def test_labels_belong_to_their_images(make_manifest: Any, job: Job, tmp_path: Path) -> None:
    """The gray value of each image encodes its row."""
    labels = [1, 0, 0, 1, 1, 1, 0, 1]
    colours(make_manifest, labels)
    run = replace(
        config("none", epochs=1, batch=4, images="resident"),
        framework=Choice("supervised", {"classes": 2, "bn_group": 0}),
        view=ViewConfig(size=SIDE, grid=4, jitter_p=0.0, gray_p=0.0, blur_p=0.0),
    )
    rows: list[int] = []
    honest = Framework.losses

    def losses(self: Framework, views: Views) -> dict[str, Tensor]:
        assert views.labels is not None
        gray = (views.images[0][:, 0].mean(dim=(1, 2)) * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        shown = (gray / 9).round().int().tolist()
        assert views.labels.tolist() == [labels[row] for row in shown]
        rows.extend(shown)
        return honest(self, views)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Framework, "losses", losses)
        module.pretrain(run, module.Inputs(tmp_path / "data", tmp_path / "none"), job)
    assert sorted(rows) == list(range(8))


def test_no_epochs_save_the_initial_encoder(make_manifest: Any, job: Job, tmp_path: Path) -> None:
    colours(make_manifest, [0, 1] * 4)
    mask = Choice("high_pass", {"where": "random", "hard_negative": None})
    run = replace(config("none", epochs=0, warmup_epochs=10), mask=mask)
    inputs = module.Inputs(tmp_path / "data", tmp_path / "none")
    assert module.pretrain(run, inputs, job) == {}
    names = {"encoder.safetensors", "encoder.json", "projector.safetensors"}
    assert {path.name for path in job.out.iterdir()} == names
    torch.manual_seed(job.seed)
    initial = frameworks.build(run.framework, run.encoder, BATCH).get_submodule("encoder")
    saved = on_disk.load(job.out, job.device)
    assert differences(saved.network.state_dict(), initial.state_dict()) == []
    assert saved.spec.filter is not None and saved.spec.filter["name"] == "high_pass"


@pytest.mark.parametrize("switched_on", [True, False])
def test_deterministic_algorithms_are_used_during_training_only(
    switched_on: bool, make_manifest: Any, job: Job, tmp_path: Path
) -> None:
    colours(make_manifest, [0, 1] * 4)
    during = []
    honest = Learner.step

    def step(self: Learner, *arguments: Any) -> dict[str, float]:
        during.append(torch.are_deterministic_algorithms_enabled())
        return honest(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        run = config("none", deterministic=switched_on)
        module.pretrain(run, module.Inputs(tmp_path / "data", tmp_path / "none"), job)
    assert during == [switched_on] * 2
    assert not torch.are_deterministic_algorithms_enabled()
