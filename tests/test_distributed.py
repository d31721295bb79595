"""Two processes that share a batch compute what one process computes on all of it.

Both processes start once for the whole module, do everything, and leave their results in files.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from salmask import frameworks
from salmask.data.loader import Crops
from salmask.distributed import (
    gather,
    gather_objects,
    gather_with_gradient,
    local_rows,
    mean_weight,
    rank,
    world_size,
)
from salmask.encoders.norms import GroupedBatchNorm
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import batch_shuffle
from salmask.shapes import Mixed, Views
from salmask.train.batches import make_batch

WORLD, BATCH, SIDE, QUEUE = 2, 16, 16, 64
LOCAL = BATCH // WORLD
ENCODER = EncoderConfig("resnet10", width=8, stem="small2")
SMALL: dict[str, dict[str, Any]] = {
    "moco": {"dim": 6, "hidden": 10, "queue": QUEUE, "momentum": 0.9},
    "simclr": {"dim": 6, "hidden": 10},
    "byol": {"dim": 6, "hidden": 10, "momentum": 0.9},
    "simsiam": {"dim": 6, "hidden": 4},
}
BOTH = ((0, 1, 0.5), (1, 0, 0.5))
KINDS: dict[str, dict[str, Any]] = {  # numbers of hard negatives and mixtures, and the comparisons
    "hard negatives": {"negatives": 2, "mixed": 0, "pairs": ((0, 1, 1.0),)},
    "mixtures": {"negatives": 0, "mixed": 2, "pairs": ((0, 1, 1.0),)},
    "many views": {"negatives": 0, "mixed": 0, "pairs": tuple((n, 1, 0.5) for n in (0, 2, 3))},
    "both ways": {"negatives": 0, "mixed": 1, "pairs": BOTH},
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("simclr", kind, {}) for kind in ("hard negatives", "mixtures", "many views")),
    *(("moco", kind, {}) for kind in ("hard negatives", "mixtures", "many views")),
    ("moco", "both ways", {"symmetric": True}),
    ("byol", "both ways", {}),
    ("simsiam", "both ways", {}),
]
# batch-norm groups: of half a process's part; where hard negatives are, of all of it too; and 0
RUNS = [(*case, LOCAL // 2) for case in CASES]
RUNS += [(*case, LOCAL) for case in CASES if case[1] == "hard negatives"]
RUNS += [(*case, 0) for case in CASES if case[1] in ("hard negatives", "both ways")]
NORMS: dict[str, dict[str, Any]] = {  # inputs of the whole batch, and options of the layer
    "features": {"shape": (BATCH, 3)},
    "images": {"shape": (BATCH, 3, 4, 5)},
    "channels last": {"shape": (BATCH, 3, 4, 5), "layout": torch.channels_last},
    "one sample each": {"shape": (WORLD, 3)},
    "not affine": {"shape": (BATCH, 3), "affine": False},
    "cumulative": {"shape": (BATCH, 3), "momentum": None},
    "untracked": {"shape": (BATCH, 3), "tracked": False},
    "far from 0": {"shape": (BATCH, 3, 4, 5), "mean": 1000.0},
    "uneven parts": {"shape": (BATCH - 3, 3, 4, 5)},
    "half precision": {"shape": (BATCH, 3, 4, 5), "dtype": torch.bfloat16},
    "double precision": {"shape": (BATCH, 3, 4, 5), "dtype": torch.float64},
}


def whole(kind: str, seed: int) -> Views:
    """The views of a global batch. Mixtures stay within the halves, as one process has no more."""
    count, pairs = KINDS[kind], KINDS[kind]["pairs"]
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)

    shown = noise()
    views = tuple(shown + noise() for _ in range(1 + max(max(i, j) for i, j, _ in pairs)))
    backwards = torch.arange(BATCH).view(WORLD, LOCAL).flip(1).flatten()
    shares = torch.rand(BATCH, generator=generator)
    terms = ((torch.arange(BATCH), shares), (backwards, 1 - shares))
    return Views(
        views,
        pairs,
        torch.stack([torch.randperm(BATCH, generator=generator) for _ in range(2)]),
        {1: tuple(noise() for _ in range(count["negatives"]))} if count["negatives"] else {},
        tuple(Mixed(noise(), terms) for _ in range(count["mixed"])),
    )


def shared(views: Views) -> Views:
    """The part of this process; rows are indices into this part."""
    mine = views.map(local_rows)
    mixed = tuple(
        Mixed(
            m.images,
            tuple((local_rows(rows) % LOCAL, local_rows(share)) for rows, share in m.positives),
        )
        for m in mine.mixed
    )
    return replace(mine, mixed=mixed) if world_size() > 1 else views


def train(name: str, kind: str, options: dict[str, Any], group: int) -> dict[str, Any]:
    """Metrics and summed gradients of two steps without an optimizer; one step for frameworks
    without a queue."""
    torch.manual_seed(0)
    given = Choice(name, SMALL[name] | options | {"bn_group": group})
    model = frameworks.build(given, ENCODER, BATCH).train()
    with torch.no_grad():
        for parameter in model.parameters():  # so that a moving average differs from its network
            parameter.add_(0.1 * torch.randn_like(parameter))
    metrics = []
    for step in range(2 if name == "moco" else 1):
        step_metrics = model(shared(whole(kind, step)), 0.5)
        step_metrics["loss"].backward()
        model.finish_step()
        metrics.append({key: value.detach() for key, value in step_metrics.items()})
    return {
        "metrics": metrics,
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        "buffers": dict(model.named_buffers()),
        "cursor": getattr(model, "cursor", None),
    }


def normalise(
    shape: tuple[int, ...],
    mean: float = 0.0,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    affine: bool = True,
    momentum: float | None = 0.1,
    tracked: bool = True,
) -> dict[str, Tensor]:
    """Batch norm over the whole batch, twice: the second output, and every gradient and statistic.
    Each sample has a mean of its own, so that the halves are far apart."""
    norm = GroupedBatchNorm(3, 0, affine).to(torch.promote_types(dtype, torch.float32))
    norm.momentum, norm.track_running_stats = momentum, tracked
    generator = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    for _ in range(2):
        x = torch.randn(shape, generator=generator) + mean
        x += torch.linspace(-1, 1, len(x)).view(-1, *[1] * (x.dim() - 1))
        weights = local_rows(torch.randn(shape, generator=generator))
        x = local_rows(x).to(dtype).contiguous(memory_format=layout).requires_grad_()
        norm.zero_grad()
        out = norm(x)
        (out * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=layout) and out.is_contiguous(memory_format=layout)
    gradients = {n: p.grad for n, p in norm.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **gradients, **dict(norm.named_buffers())}


def crops(count: int) -> Crops:
    """`count` samples in the third step of the second epoch; all pixels are zero."""
    grey = {branch: torch.zeros(count, 3, SIDE, SIDE) for branch in ("query", "key")}
    return Crops(1, 2, torch.arange(count), grey, {}, {})


def collect() -> dict[str, Any]:
    """All results that the tests compare, as this process computes them."""
    rows = local_rows(torch.arange(BATCH * 3.0).view(BATCH, 3)).clone().requires_grad_()
    beside = torch.zeros(BATCH, 3, requires_grad=True)
    weights = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(rank()))
    doubled = beside * 2  # first, so that its gradient is computed last
    ((gather_with_gradient(rows) + doubled) * weights).sum().backward()
    images = local_rows(torch.arange(BATCH * 12.0).view(BATCH, 3, 2, 2))
    config = RunConfig(
        "run", ENCODER, ViewConfig(size=SIDE, grid=4), Choice("none", {}), Choice("moco", {}),
        TrainConfig(batch=BATCH),
    )  # fmt: skip
    return {
        "place": (rank(), world_size()),
        "own": local_rows(torch.arange(BATCH)),
        "gathered": gather(images.to(memory_format=torch.channels_last)),
        "transposed": gather(images[:, 0, 0].T[:, :2]),
        "shares": [mean_weight(torch.tensor(count)) for count in (6, 3 + 2 * rank(), 0)],
        "items": gather_objects([rank(), "x"][: 2 - rank()]),
        "with gradient": gather_with_gradient(rows).detach(),
        "weights": weights,
        "rows": rows.grad,
        "beside": beside.grad,
        "shuffle": make_batch(crops(BATCH // world_size()), config, 5, None).shuffle,
        "runs": [train(*run) for run in RUNS],
        "norms": {name: normalise(**given) for name, given in NORMS.items()},
    }


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=number,
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )
    torch.save(collect(), Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results of one process on the whole batch."""
    return collect()


def name_of(run: tuple[str, str, dict[str, Any], int]) -> str:
    return f"{run[0]}, {run[1]}, groups of {run[3]}"


def test_rank_and_world_size(both, alone):
    assert [process["place"] for process in both] == [(0, 2), (1, 2)]
    assert alone["place"] == (0, 1)
    assert torch.equal(torch.cat([process["own"] for process in both]), alone["own"])
    assert torch.equal(both[0]["own"], torch.arange(LOCAL))


@pytest.mark.parametrize("what", ["gathered", "with gradient"])
def test_rows_are_gathered_in_rank_order(both, alone, what):
    for process in both:
        assert torch.equal(process[what], alone[what])


def test_rows_of_any_layout_can_be_gathered(both, alone):
    mine = alone["gathered"][:, 0, 0]  # (BATCH,2), each process sends (2,2), transposed
    halves = [mine[:LOCAL].T[:, :2], mine[LOCAL:].T[:, :2]]
    for process in both:
        assert torch.equal(process["transposed"], torch.cat(halves))


def test_a_gathered_rows_gradient_is_that_of_all_processes_losses(both):
    total = sum(process["weights"] for process in both)
    assert torch.equal(torch.cat([process["rows"] for process in both]), total)


def test_gathering_leaves_other_gradients_alone(both, alone):
    for process in (*both, alone):
        assert torch.equal(process["beside"], 2 * process["weights"])


def test_means_over_unequal_parts_are_weighed(both, alone):
    """Means of 3 and 5 items: the weights are 2 * 3/8 and 2 * 5/8."""
    expected = [[1, 0.75, 0], [1, 1.25, 0]]
    assert [[float(value) for value in process["shares"]] for process in both] == expected
    assert [float(value) for value in alone["shares"]] == [1, 1, 1]


def test_objects_are_gathered_in_rank_order(both, alone):
    for process in both:
        assert process["items"] == [0, "x", 1]
    assert alone["items"] == [0, "x"]


def test_the_shuffle_is_the_global_batchs(both, alone):
    expected = batch_shuffle(5, 1, 2, BATCH)
    for process in (*both, alone):
        assert torch.equal(process["shuffle"], expected)


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_the_mean_over_processes_is_that_of_one_process(both, alone, run):
    ours, theirs = of(run, both, alone)
    for step, expected in enumerate(theirs["metrics"]):
        for name, value in expected.items():
            if name == "spread":  # computed on the part of a process
                continue
            mean = torch.stack([process["metrics"][step][name] for process in ours]).mean()
            torch.testing.assert_close(mean, value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_averaged_gradients_are_those_of_one_process(both, alone, run):
    ours, theirs = of(run, both, alone)
    scale = max(expected.abs().max() for expected in theirs["gradients"].values())
    for name, expected in theirs["gradients"].items():
        mean = torch.stack([process["gradients"][name] for process in ours]).mean(dim=0)
        print(name, scale.item(), expected.abs().max().item(), (mean - expected).abs().max().item())
        torch.testing.assert_close(mean / scale, expected / scale, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("run", [run for run in RUNS if run[0] == "moco"], ids=name_of)
def test_the_queue_is_the_same_everywhere(both, alone, run):
    ours, theirs = of(run, both, alone)
    first, second = (process["buffers"]["queue"] for process in ours)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, theirs["buffers"]["queue"], atol=1e-5, rtol=1e-5)
    keys = 2 * (BATCH * 2 if run[2] else BATCH)
    assert {process["cursor"] for process in (*ours, theirs)} == {keys % QUEUE}


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_running_statistics_average_to_those_of_one_process(both, alone, run):
    ours, theirs = of(run, both, alone)
    for name, expected in theirs["buffers"].items():
        if name.endswith(("running_mean", "running_var")):
            mean = torch.stack([process["buffers"][name] for process in ours]).mean(dim=0)
            torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("run", [run for run in RUNS if not run[3]], ids=name_of)
def test_statistics_of_the_whole_batch_are_the_same_everywhere(both, alone, run):
    (first, second), theirs = of(run, both, alone)
    names = [name for name in theirs["buffers"] if "running" in name]
    assert names
    for name in names:
        assert torch.equal(first["buffers"][name], second["buffers"][name])
        expected = theirs["buffers"][name]
        torch.testing.assert_close(first["buffers"][name], expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", NORMS)
def test_the_whole_batch_is_normalised_as_in_one_process(both, alone, case):
    ours, theirs = [process["norms"][case] for process in both], alone["norms"][case]
    for name, expected in theirs.items():
        first, second = (process[name] for process in ours)
        assert first.dtype == expected.dtype
        limit = 1e-5
        if name in ("out", "x"):  # of each process's part; 1000 alone has rounding of 6e-5
            combined = torch.cat([first, second])
            limit = {"far from 0": 1e-3, "half precision": 2e-2}.get(case, limit)
        elif name in ("weight", "bias"):  # by way of each process's part
            assert not torch.equal(first, second)
            combined = first + second
            limit = {"far from 0": 1e-2, "half precision": 1e-4}.get(case, limit)
        else:
            assert torch.equal(first, second)
            combined = first
        torch.testing.assert_close(combined, expected, atol=limit, rtol=limit, msg=name)


def test_statistics_far_from_0_keep_their_precision(both):
    """By the variance of each process and of their means: squares of 1000 would leave 2 digits."""
    near, far = (both[0]["norms"][case] for case in ("images", "far from 0"))
    torch.testing.assert_close(far["running_var"], near["running_var"], atol=0, rtol=1e-4)
    torch.testing.assert_close(far["out"], near["out"], atol=1e-3, rtol=0)
    torch.testing.assert_close(far["x"], near["x"], atol=1e-3, rtol=0)


def test_the_whole_batchs_statistics_stay_alone_while_they_are_not_tracked(both):
    for process in both:
        assert process["norms"]["untracked"]["num_batches_tracked"] == 0
        assert torch.equal(process["norms"]["untracked"]["running_var"], torch.ones(3))


def of(
    run: tuple[str, str, dict[str, Any], int], both: list[dict[str, Any]], alone: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One run in both processes, and in one."""
    number = RUNS.index(run)
    return [process["runs"][number] for process in both], alone["runs"][number]
