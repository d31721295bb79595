"""Every framework with every mask of docs/method.md: a few real steps on a tiny batch."""

import copy
import csv
import functools
import io
import math
import signal
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salmask import frameworks
from salmask.devices import place
from salmask.errors import InterruptedRunError, UserError
from salmask.masks import MASKS
from salmask.masks.wiring import WiredMask, wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws, batch_shuffle
from salmask.shapes import Pair, Views
from salmask.train import pretrain as loop
from salmask.train.adversary import Adversary, frozen
from salmask.train.batches import Batch
from salmask.train.optim import build_optimizer, set_rates
from tests.helpers.states import differences

CPU = torch.device("cpu")
ENCODER, VIEW = EncoderConfig("resnet10", 8, "small2"), ViewConfig(size=32, grid=4)
BATCH, QUEUE, HALF, STEPS = 16, 1024, 3, 6

MOCO = {"dim": 16, "hidden": 16, "queue": QUEUE, "momentum": 0.9, "bn_group": 8}
FRAMEWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco v1": ("moco", MOCO | {"head": "linear"}),
    "moco v2": ("moco", MOCO),
    "symmetric moco": ("moco", MOCO | {"symmetric": True}),
    "simclr": ("simclr", {"dim": 16, "hidden": 16, "temperature": 0.5, "bn_group": 8}),
    "byol": ("byol", {"dim": 16, "hidden": 32, "momentum": 0.9, "bn_group": 8}),
    "simsiam": ("simsiam", {"dim": 16, "hidden": 8, "bn_group": 8}),
    "supervised": ("supervised", {"classes": 4, "bn_group": 8}),
}
OPTIMIZERS = {"simclr": ("adam", 3e-3), "byol": ("lars", 20.0), "simsiam": ("sgd", 0.1)}

# See docs/method.md.
EVERYWHERE = ("none", "mixmask", "unmix", "mixmask_star", "erase")
GUIDED = ("high_pass", "blur", "mean")
PUSHING = ("moco v1", "moco v2", "symmetric moco", "simclr")  # frameworks with hard negatives
LEARNED = ("moco v2", "simclr", "byol", "simsiam")
MASKED_SIAMESE = ("moco v2", "simclr", "byol")
COMPARING = tuple(name for name in FRAMEWORKS if name != "supervised")
ALONE: dict[str, Any] = {"hard_negative": None}
ONE_VIEW: dict[str, Any] = {"key_ratio": None, "extra_views": 0}  # of mscn

MOMENTUM_CONTRAST = ("moco v1", "moco v2", "symmetric moco")
Case = tuple[str, str, bool]  # framework, mask, with hard negatives
CASES: list[Case] = [
    *((f, m, False) for f in FRAMEWORKS for m in GUIDED),
    *((f, m, False) for f in COMPARING for m in EVERYWHERE),
    *(("supervised", m, False) for m in ("none", "mscn")),
    *((f, m, True) for f in PUSHING for m in GUIDED),
    *((f, "mscn", False) for f in MASKED_SIAMESE),
    *((f, "adios", False) for f in LEARNED),
]
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        (f, m, {}, "has no negatives, so it cannot use hard negatives")
        for f in FRAMEWORKS
        for m in GUIDED
        if f not in PUSHING
    ),
    *((f, "mscn", {}, f"(?i)no paper defines .* for {f}.*published form of moco, simclr, byol")
      for f in ("moco v1", "symmetric moco", "simsiam")),
    *((f, "adios", {}, "published form of moco, simclr, byol, simsiam")
      for f in ("moco v1", "symmetric moco")),
    *(("supervised", m, {}, "supervised training compares no views .* changes the query only")
      for m in ("mixmask", "unmix", "mixmask_star", "erase", "adios", "mscn")),
    *(("supervised", m, o, "changes the query only")
      for m, o in (("blur", ALONE | {"masked": "both"}), ("mscn", ONE_VIEW | {"key_ratio": 0.05}))),
    *((f, m, {"where": "random"}, "but `where: random` reads no saliency")
      for f in PUSHING for m in GUIDED),
]  # fmt: skip


def label(case: Any) -> str | None:
    return "-".join([*case[:2], *["hard negatives"] * case[2]]) if isinstance(case, tuple) else None


def options_of(case: Case) -> dict[str, Any]:
    if case[:2] == ("supervised", "mscn"):
        return ONE_VIEW
    return ALONE if case[1] in GUIDED and not case[2] else {}


def build(case: Case) -> tuple[Any, WiredMask]:
    name, options = FRAMEWORKS[case[0]]
    torch.manual_seed(0)
    model = frameworks.build(Choice(name, options), ENCODER, BATCH)
    strategy = wire_mask(Choice(case[1], options_of(case)), model.wiring, VIEW)
    return place(model, CPU), strategy


@functools.cache
def pair(extra_views: int) -> Pair:
    """Two noisy versions of each image, and random saliency maps."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator)

    shown = noise(3, 32, 32)
    query, key, *extra = (shown + 0.7 * noise(3, 32, 32) for _ in range(2 + extra_views))
    return Pair(query, key, noise(4, 4).exp(), noise(4, 4).exp(), tuple(extra))


@dataclass
class Training:
    """The state of a pretraining, and one step of it (salmask/train/pretrain.py)."""

    model: Any
    optimizer: torch.optim.Optimizer
    strategy: WiredMask
    adversary: Adversary | None
    config: TrainConfig

    @classmethod
    def of(cls, case: Case) -> "Training":
        model, strategy = build(case)
        optimizer, lr = OPTIMIZERS.get(case[0], ("sgd", 0.05))
        config = TrainConfig(
            optimizer=optimizer, lr=lr, warmup_epochs=0, schedule="constant", batch=BATCH
        )
        adversary = Adversary(place(strategy.masker, CPU)) if strategy.masker else None
        return cls(model.train(), build_optimizer(model, config), strategy, adversary, config)

    def batch(self, step: int) -> Batch:
        """The same crops in every step, with other masks and other groups."""
        draws = Draws.of(0, step, torch.arange(BATCH))
        shuffle = batch_shuffle(0, 0, step, BATCH)
        return Batch(pair(self.strategy.extra_views), draws, shuffle, torch.arange(BATCH) % 4)

    def step(self, number: int) -> dict[str, Tensor]:
        set_rates(self.optimizer, self.config, self.config.lr)
        batch = self.batch(number)
        recorded = self.model(batch.views(self.strategy), number / STEPS)
        self.optimizer.zero_grad(set_to_none=True)
        recorded["loss"].backward()
        self.model.finish_step()
        self.optimizer.step()
        if self.adversary:
            recorded = recorded | self.adversary.step(self.model, batch, 1.0)
        return recorded

    def state(self) -> dict[str, Any]:
        adversary = self.adversary.state_dict() if self.adversary else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": adversary,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])


@dataclass
class Trained:
    """An undisturbed training: its end, its start, and a checkpoint from the middle."""

    training: Training
    start: nn.Module
    views: Views  # the first step's
    saved: bytes  # after HALF steps
    before_last: nn.Module
    recorded: list[dict[str, float]]


@functools.cache
def trained(case: Case) -> Trained:
    training = Training.of(case)
    start = copy.deepcopy(training.model)
    views = training.batch(0).views(training.strategy)
    stream, recorded = io.BytesIO(), []
    for number in range(STEPS):
        if number == HALF:
            torch.save(training.state(), stream)
        if number == STEPS - 1:
            before_last = copy.deepcopy(training.model)
        recorded.append({name: value.item() for name, value in training.step(number).items()})
    return Trained(training, start, views, stream.getvalue(), before_last, recorded)


def loss_on(model: Any, views: Views) -> float:
    with frozen(model), torch.no_grad():
        return model.losses(views)["loss"].item()


def test_every_mask_and_framework_is_in_the_table():
    assert {mask for _, mask, _ in CASES} == set(MASKS)
    assert {FRAMEWORKS[name][0] for name, _, _ in CASES} == set(frameworks.FRAMEWORKS)
    refused = {(framework, mask) for framework, mask, options, _ in REFUSED if not options}
    allowed = {(f, m) for f, m, hard in CASES if hard or m not in GUIDED}
    allowed.remove(("supervised", "mscn"))  # only with options
    assert refused.isdisjoint(allowed)
    assert refused | allowed == {(f, m) for f in FRAMEWORKS for m in MASKS}


@pytest.mark.parametrize(("framework", "mask", "options", "message"), REFUSED)
def test_other_pairs_are_refused_with_the_reason(framework, mask, options, message):
    name, given = FRAMEWORKS[framework]
    wiring = frameworks.build(Choice(name, given), ENCODER, BATCH).wiring
    with pytest.raises(UserError, match=message):
        wire_mask(Choice(mask, options), wiring, VIEW)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_it_learns(case):
    run = trained(case)
    model = run.training.model
    assert all(math.isfinite(value) for recorded in run.recorded for value in recorded.values())
    after = copy.deepcopy(model)
    if case[0] in MOMENTUM_CONTRAST:
        after.queue.copy_(run.start.queue)  # a later queue contains keys of the same images
    assert loss_on(after, run.views) < loss_on(run.start, run.views) - 0.1
    changed = [
        not torch.equal(a, b)
        for a, b in zip(model.encoder.parameters(), run.start.encoder.parameters(), strict=True)
    ]
    assert all(changed)


def followed(run: Trained, theirs: str, ours: str, momentum: float) -> list[Tensor]:
    """The parameters of a momentum encoder after the last step, by the formula."""
    sides = (run.before_last.get_submodule(name).parameters() for name in (theirs, ours))
    return [
        momentum * a.detach() + (1 - momentum) * b.detach() for a, b in zip(*sides, strict=True)
    ]


# What these three tests prove does not depend on most masks: masks that do not learn have no state.
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c[0] in (*MOMENTUM_CONTRAST, "byol") and c[1] in ("none", "adios")],
    ids=label,
)
def test_followers_follow_by_the_momentum_formula(case):
    run = trained(case)
    momentum, prefix = 0.9, "key"
    if case[0] == "byol":  # rises from 0.9 at the first step to 1 after the last
        prefix = "target"
        momentum = 1 - 0.1 * (math.cos(math.pi * (STEPS - 1) / STEPS) + 1) / 2
    for part in ("encoder", "projector"):
        expected = followed(run, f"{prefix}_{part}", part, momentum)
        result = list(run.training.model.get_submodule(f"{prefix}_{part}").parameters())
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c[0] in MOMENTUM_CONTRAST and c[1] in ("none", "mixmask", "blur", "mscn")],
    ids=label,
)
def test_the_queue_holds_the_newest_keys_in_their_place(case):
    run = trained(case)
    model, count = run.training.model, 2 * BATCH if case[0] == "symmetric moco" else BATCH
    assert model.cursor == STEPS * count
    assert torch.equal(model.queue[:, STEPS * count :], run.start.queue[:, STEPS * count :])
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(QUEUE))
    batch = run.training.batch(STEPS - 1)
    last = batch.views(run.training.strategy)
    keyed = nn.Sequential(model.key_encoder, model.key_projector)  # updated before it made the keys
    expected = []
    for view in last.targets[: count // BATCH]:
        with frozen(keyed), torch.no_grad():
            shuffled = nn.functional.normalize(keyed(last.images[view][batch.shuffle[0]]), dim=1)
        expected.append(torch.empty_like(shuffled))
        expected[-1][batch.shuffle[0]] = shuffled
    newest = model.queue[:, (STEPS - 1) * count : STEPS * count]
    torch.testing.assert_close(newest.T, torch.cat(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c[1] in ("mixmask", "adios", "mscn") or c[2] or c[0] == "supervised"],
    ids=label,
)
def test_it_resumes_bit_for_bit(case):
    run = trained(case)
    resumed = Training.of(case)
    resumed.load(torch.load(io.BytesIO(run.saved), weights_only=True))
    halfway = resumed.state()
    assert differences(halfway, torch.load(io.BytesIO(run.saved), weights_only=True)) == []
    halfway = copy.deepcopy(halfway)
    recorded = [
        {name: value.item() for name, value in resumed.step(number).items()}
        for number in range(HALF, STEPS)
    ]
    assert recorded == run.recorded[HALF:]
    assert differences(resumed.state(), run.training.state()) == []
    assert differences(resumed.state(), halfway) != []


# ------------------------------------------------------------------------- complete pretrainings

SIMILARITY = "positive_similarity"
LOOPED = {  # framework, mask, columns of history.csv besides epoch, lr and loss
    "moco v2": ("mixmask_star", {"accuracy", SIMILARITY}),
    "symmetric moco": ("mixmask", {"accuracy", SIMILARITY}),
    "simclr": ("mscn", {"accuracy", SIMILARITY}),
    "byol": ("adios", {"spread", "masker_loss", "mask_mean_max", SIMILARITY}),
    "simsiam": ("unmix", {"spread", SIMILARITY}),
    "supervised": ("none", {"top1"}),
}


def configured(framework: str, mask: str) -> RunConfig:
    name, options = FRAMEWORKS[framework]
    train = TrainConfig(epochs=2, warmup_epochs=1, batch=8, lr=0.02, images="resident")
    return RunConfig("run", ENCODER, VIEW, Choice(mask, {}), Choice(name, options), train)


@pytest.mark.parametrize("framework", LOOPED)
def test_a_stopped_run_ends_in_the_same_bytes(framework, job, make_manifest, tmp_path, monkeypatch):
    mask, metrics = LOOPED[framework]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 40, 36, 3), dtype=np.uint8)
    make_manifest([(image, i % 4, "train") for i, image in enumerate(pixels)], tuple("abcd"))
    config, inputs = configured(framework, mask), loop.Inputs(tmp_path / "data", tmp_path / "none")
    calm = replace(job, work=tmp_path / "calm", out=tmp_path / "calm out")
    loop.pretrain(config, inputs, calm)

    steps = 0

    def stop_in_the_fourth(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGTERM)
        set_rates(*arguments)

    monkeypatch.setattr(loop, "set_rates", stop_in_the_fourth)
    with pytest.raises(InterruptedRunError, match="step 4 of 6"):
        loop.pretrain(config, inputs, job)
    last = loop.pretrain(config, inputs, job)
    assert steps == 6  # each step once

    files = {"encoder.safetensors", "encoder.json", "history.csv", "projector.safetensors"}
    files |= {"masker.safetensors"} if mask == "adios" else set()
    assert {path.name for path in job.out.iterdir()} == files
    for name in files:
        assert (job.out / name).read_bytes() == (calm.out / name).read_bytes(), name
    with (job.out / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == {"epoch", "lr", "loss"} | metrics == set(last)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
