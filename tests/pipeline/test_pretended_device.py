"""Every stage on a device that is not the CPU, without a GPU: the simulated device refuses to
compute with tensors on the CPU. All stages give the same bytes as on the CPU."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.helpers.pretended import pretence
from tests.helpers.project import ROOT, TINY, Project
from tests.pipeline.conftest import SCENES

pytestmark = pytest.mark.pipeline

METHODS = yaml.safe_load((ROOT / "suites/demo-methods.yaml").read_text())["runs"]
RUNS = ("mocov2-blur", "mocov2-high-pass", "mocov2-mscn", "mocov2-adios", "mocov1-blur",
        "simclr-blur", "byol-mixmask", "simsiam")  # fmt: skip
SHAPES = {"name": "demo", "root": "artifacts/code/demo.sha256", "first": 900,
          "images": {"train": 40, "val": 20}}  # fmt: skip
BEFORE = ("prepare", "localizer", "transfer_data --name shapes", "detect_data --name scenes")
RESULTS = ("saliency", "pretrain", "evaluate")
SCORED = "--run mocov2-blur"
TESTED = (
    "saliency",
    *(f"pretrain --run {run}" for run in RUNS),
    *(f"evaluate --protocol {n} {SCORED}" for n in ("knn", "linear_fast", "linear", "finetune")),
    f"variance {SCORED}",
    f"transfer {SCORED} --dataset shapes",
    f"detect {SCORED} --dataset scenes",
)


def tiny_runs() -> dict[str, Any]:
    """Trainings of two steps for each framework and each kind of mask."""
    runs = {name: copy.deepcopy(METHODS[name]) for name in RUNS}
    for run in runs.values():
        run.get("train", {}).pop("epochs", None)
        sizes = {"dim": 16, "hidden": 16}
        given = run.get("framework", {})
        given |= {name: size for name, size in sizes.items() if name in given}
    runs["mocov2-high-pass"]["train"] = {"images": "stream"}
    return runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The results of all stages, by device."""
    params = copy.deepcopy(TINY)
    params |= {"probe": {"every": 1, "images": 16}}
    params |= {"runs": tiny_runs(), "transfer": {"shapes": SHAPES}, "detect": {"scenes": SCENES}}
    params["data"]["images"] = {"train": 64, "val": 32, "decorrelated": 32}
    params["saliency"]["levels"] = [64, 96]
    params["train"] |= {"epochs": 1, "warmup_epochs": 0}
    project = Project(tmp_path_factory.mktemp("project"), params)
    (project.folder / "one.yaml").write_text("executor: local\ncpus: 1\n")
    script, artifacts = (
        str(Path(__file__).parents[1] / "helpers" / "pretended.py"),
        project.folder / "artifacts",
    )
    before: tuple[str, ...] = BEFORE
    folders = {}
    for device in ("cpu", "pretended"):
        env = {"SALMASK_CLUSTER": "one.yaml", "SALMASK_RUNS": f"runs of {device}"}
        project.run(sys.executable, script, *before, *TESTED, SALMASK_DEVICE=device, **env)
        folders[device] = project.folder / device
        folders[device].mkdir()
        for name in RESULTS:
            (artifacts / name).rename(folders[device] / name)
        before = ()
    return folders


def results(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_stage_makes_the_same_bytes_on_another_device(made: dict[str, Path]) -> None:
    on_cpu, simulated = (results(made[device]) for device in ("cpu", "pretended"))
    assert on_cpu.keys() == simulated.keys()
    records = {name for name in on_cpu if name.endswith("provenance.json")}
    assert len(records) == len(TESTED)
    for name in on_cpu.keys() - records:
        assert simulated[name] == on_cpu[name], name
    for name in records:
        assert json.loads(simulated[name])["device"]["type"] == "pretended", name


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    torch.multiprocessing.spawn(refusals, nprocs=1)  # type: ignore[attr-defined]


def refusals(_: int) -> None:
    """Runs in a separate process, because the device stays registered."""
    with pretence():
        on_cpu, simulated = torch.arange(3.0), torch.arange(3.0, device="pretended")
        assert simulated.device.type == "pretended" and simulated.cpu().device.type == "cpu"
        assert torch.equal(
            (simulated * torch.tensor(2.0) + 1).cpu(), on_cpu * 2 + 1
        )  # 0-d CPU tensors are allowed
        assert torch.equal(simulated[torch.tensor([2, 0])].cpu(), on_cpu[[2, 0]])  # indices too
        layer = nn.Linear(3, 2).to("pretended")
        for wrong in (
            lambda: simulated + on_cpu,
            lambda: on_cpu[simulated.long()],
            lambda: torch.cat([simulated, on_cpu]),
            lambda: on_cpu.add_(simulated),
            lambda: layer(on_cpu),
        ):
            with pytest.raises(RuntimeError, match="on the CPU"):
                wrong()
        for wrong in (simulated.numpy, lambda: np.asarray(simulated)):
            with pytest.raises(TypeError, match="cannot become an array"):
                wrong()
        layer(simulated).sum().backward()
        assert layer.weight.grad.device.type == "pretended"
