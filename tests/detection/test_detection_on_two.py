"""Two processes that share batches of images train, detect and score as one process does."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from salmask.detection.batches import Resizing, trainable, training_batches
from salmask.detection.detector import Detector
from salmask.detection.inference import detect
from salmask.detection.objects import DetectionData
from salmask.detection.protocol import run
from salmask.detection.training import detector_inputs, precise_batch_norm
from salmask.distributed import all_reduce_mean, data_parallel, rank, world_size
from salmask.errors import UserError
from salmask.job import Job
from tests.helpers.drawn_scenes import drawn, encoder

CPU = torch.device("cpu")
OPTIONS = {
    "anchors": (16, 32),
    "regions": 400,
    "masks": True,
}  # more regions than proposals, so that their number differs between images
RESIZING = Resizing((32, 48, 64), 200)
SHORT = {"recipe": "voc", "iterations": 3, "milestones": (2,), "batch": 4, "warmup": 2, "lr": 0.01,
         "short_sides": (32, 48), "test_short_side": 48, "regions": 16,
         "anchors": (16, 32), "precise_norm": 2}  # fmt: skip


def batches(images: Any, start: int, end: int) -> Any:
    return training_batches(
        images, RESIZING, seed=1, batch=4, start=start, end=end, masks=True, workers=0, device=CPU
    )


def gradients(images: Any, norm: Any) -> dict[str, torch.Tensor]:
    """Losses, gradients and running statistics of one batch of 4, averaged over processes."""
    detector = Detector(encoder(), 2, norm=norm, **OPTIONS).train()
    [batch] = batches(images, 0, 1)
    shared = data_parallel(detector, CPU)  # keep the reference: it averages gradients
    losses = shared(*detector_inputs(batch))
    sum(losses.values()).backward()
    values = {f"loss {name}": value.detach().clone() for name, value in losses.items()}
    all_reduce_mean(list(values.values()))
    values |= {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}
    return values | {n: b for n, b in detector.named_buffers() if "running" in n}


def precise_statistics(images: Any, job: Job) -> dict[str, torch.Tensor]:
    """Running statistics after precise batch norm on two batches of 4."""
    detector = Detector(encoder(), 2, **OPTIONS)
    precise_batch_norm(detector, partial(batches, images), 1, 2, job, "float32")
    return {n: b for n, b in detector.named_buffers() if "running" in n}


def all_results(folder: Path, out: Path) -> dict[str, Any]:
    """The results of all tests in this file, in one process or in each of two."""
    scene = drawn(folder / f"drawn {world_size()} {rank()}", 6)
    data, images = DetectionData("toy", scene, scene), trainable(scene)
    job = Job("f" * 12, out / "work", out, CPU, seed=0, workers=0)
    encoders = {"trained": encoder()}
    detector = Detector(encoder(), 2, **(OPTIONS | {"regions": 16}))
    detections = detect(detector, scene.images, 48, 200, job)
    results = {
        "sync": gradients(images, "sync"),
        "frozen": gradients(images, "frozen"),
        "statistics": precise_statistics(images, job),
        "detections": [[d.boxes.tolist(), d.scores.tolist(), d.masks] for d in detections],
        "metrics": run(encoders, data, job, **SHORT),
    }
    if world_size() == 2:
        with pytest.raises(UserError, match=r"batch 3 cannot be shared evenly by 2"):
            run(encoders, data, job, **(SHORT | {"batch": 3}))
        local = replace(job, work=out / "local", out=out / "local out")
        results["local"] = run(encoders, data, local, norm="local", **SHORT)
    return results


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    torch.save(all_results(Path(folder), Path(folder) / "two"), Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder, and the results of one process and of each of two."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.spawn(work, (str(folder),), nprocs=2, join=False)
    one = all_results(folder, folder / "one")
    while not context.join():
        pass
    two = [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2)]
    return folder, [one, *two]


def test_precise_statistics_are_those_of_one_process(results):
    one, *two = (result["statistics"] for result in results[1])
    for statistics in two:
        torch.testing.assert_close(statistics, one, atol=1e-4, rtol=1e-4)  # sums in float32


@pytest.mark.parametrize("norm", ["sync", "frozen"])
def test_losses_gradients_and_statistics_are_those_of_one_process(results, norm):
    one, *two = (result[norm] for result in results[1])
    scale = max(value.abs().max() for name, value in one.items() if "running" not in name)
    for values in two:
        assert values.keys() == one.keys()
        for name, expected in one.items():
            own_scale = 1 if "running" in name else scale
            torch.testing.assert_close(
                values[name] / own_scale, expected / own_scale, atol=1e-5, rtol=1e-5, msg=name
            )


def test_all_processes_have_the_detections_of_all_images(results):
    one, *two = (result["detections"] for result in results[1])
    assert len(one) == 6 and any(boxes for boxes, _, _ in one)
    for detections in two:
        assert detections == one


def test_the_first_process_scores_as_one_process(results):
    folder, (one, first, second) = results
    assert second["metrics"] == second["local"] == {}
    assert first["local"].keys() == first["metrics"].keys() == one["metrics"].keys()
    for name, expected in one["metrics"].items():
        assert first["metrics"][name] == pytest.approx(expected, abs=0.5), name
    paths = [folder / name / "work/step-000000003.pt" for name in ("one", "two")]
    states = [torch.load(path, weights_only=True)["state"] for path in paths]
    for name, expected in states[0]["model"].items():
        torch.testing.assert_close(
            states[1]["model"][name], expected, atol=1e-3, rtol=1e-3, msg=name
        )
    assert sorted(p.name for p in (folder / "two").glob("*.*")) == ["classes.csv", "detections.png"]
