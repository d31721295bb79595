"""Two processes that share a batch of images learn, find and score what one does."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from salmask.detection import protocol as run
from salmask.detection.batches import Resizing, trainable, training_batches
from salmask.detection.detector import Detector
from salmask.detection.inference import search
from salmask.detection.protocol import Sets
from salmask.detection.training import on_device, precise_batch_norm
from salmask.distributed import all_reduce_mean, data_parallel, rank, world_size
from salmask.errors import UserError
from salmask.job import Job
from tests.helpers.drawn_scenes import drawn, encoder

CPU = torch.device("cpu")
OPTIONS = {"anchors": (16, 32), "regions": 400, "masks": True}  # more than there are: uneven
LOOKS = Resizing((32, 48, 64), 200)
SHORT = {"recipe": "voc", "iterations": 3, "milestones": (2,), "batch": 4, "warmup": 2, "lr": 0.01,
         "short_sides": (32, 48), "test_short_side": 48, "regions": 16,
         "anchors": (16, 32), "precise_norm": 2}  # fmt: skip


def batches(pictures: Any, start: int, end: int) -> Any:
    return training_batches(
        pictures, LOOKS, seed=1, batch=4, start=start, end=end, masks=True, workers=0
    )


def gradients(pictures: Any, norm: Any) -> dict[str, torch.Tensor]:
    """Of one batch of 4, averaged over processes by DDP; with the losses, averaged too."""
    detector = Detector(encoder(), 2, norm=norm, **OPTIONS).train()
    [batch] = batches(pictures, 0, 1)
    shared = data_parallel(detector, CPU)  # it averages for as long as it lives
    losses = shared(*on_device(batch, CPU))
    sum(losses.values()).backward()
    found = {f"loss {name}": value.detach().clone() for name, value in losses.items()}
    all_reduce_mean(list(found.values()))
    found |= {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}
    return found | {n: b for n, b in detector.named_buffers() if "running" in n}


def settled(pictures: Any, job: Job) -> dict[str, torch.Tensor]:
    """The statistics after precise batch norm on two batches of 4."""
    detector = Detector(encoder(), 2, **OPTIONS)
    precise_batch_norm(detector, partial(batches, pictures), 1, 2, job, "float32")
    return {n: b for n, b in detector.named_buffers() if "running" in n}


def everything(folder: Path, out: Path) -> dict[str, Any]:
    scene = drawn(folder / f"drawn {world_size()} {rank()}", 6)
    pictures = trainable(scene)
    job = Job("f" * 12, out / "work", out, CPU, seed=0, workers=0)
    detector = Detector(encoder(), 2, **(OPTIONS | {"regions": 16}))
    found = search(detector, scene.pictures, 48, 200, job)
    message = "batch 3 cannot be shared evenly by 2" if world_size() == 2 else "milestones"
    with pytest.raises(UserError, match=message):
        wrong = {"batch": 3} if world_size() == 2 else {"milestones": (9,)}
        run.run({"trained": encoder()}, Sets("toy", scene, scene), job, **(SHORT | wrong))
    return {
        "sync": gradients(pictures, "sync"),
        "frozen": gradients(pictures, "frozen"),
        "settled": settled(pictures, job),
        "found": [[seen.boxes.tolist(), seen.scores.tolist(), seen.masks] for seen in found],
        "metrics": run.run({"trained": encoder()}, Sets("toy", scene, scene), job, **SHORT),
        "local": run.run(
            {"trained": encoder()}, Sets("toy", scene, scene),
            replace(job, work=out / "local", out=out / "local out"), norm="local", **SHORT,
        ),
    }  # fmt: skip


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    torch.save(everything(Path(folder), Path(folder) / "two"), Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What one process alone, and each of two, found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    both = [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2)]
    return folder, [everything(folder, folder / "one"), *both]


def test_precise_statistics_are_those_of_one_process(seen):
    alone, *both = (found["settled"] for found in seen[1])
    for found in both:
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)  # sums in float32


@pytest.mark.parametrize("norm", ["sync", "frozen"])
def test_losses_gradients_and_statistics_are_those_of_one_process(seen, norm):
    alone, *both = (found[norm] for found in seen[1])
    scale = max(value.abs().max() for name, value in alone.items() if "running" not in name)
    for found in both:
        assert found.keys() == alone.keys()
        for name, wanted in alone.items():
            scales = 1 if "running" in name else scale
            torch.testing.assert_close(
                found[name] / scales, wanted / scales, atol=1e-5, rtol=1e-5, msg=name
            )


def test_every_picture_is_searched_once_and_all_know_it(seen):
    alone, *both = (found["found"] for found in seen[1])
    assert len(alone) == 6 and any(boxes for boxes, _, _ in alone)
    for found in both:
        assert found == alone


def test_the_first_scores_what_one_process_would(seen):
    folder, (alone, first, second) = seen
    assert second["metrics"] == second["local"] == {}
    assert first["local"].keys() == first["metrics"].keys() == alone["metrics"].keys()
    for name, wanted in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(wanted, abs=0.5), name
    ends = [folder / name / "work/step-000000003.pt" for name in ("one", "two")]
    states = [torch.load(end, weights_only=True) for end in ends]
    for name, wanted in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], wanted, atol=1e-3, rtol=1e-3, msg=name)
    assert sorted(p.name for p in (folder / "two").glob("*.*")) == ["classes.csv", "detections.png"]
