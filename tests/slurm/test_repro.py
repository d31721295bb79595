"""`dvc repro` of a tiny project on a cluster.

Saliency is a job array, each pretraining runs on two nodes, and all pretrainings are submitted at
the same time. None of this makes DVC run a stage again.
"""

import copy
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from salmask.data import manifest
from salmask.files import tree_digest
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore, read_rows
from tests.helpers.project import TINY, Project
from tests.helpers.workspace import SMALL_PROFILE

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STORE = Path("artifacts/saliency/saliency.zarr")
# Kernels for a CPU without wide vector registers, which sum in another order.
NARROW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


class OnCluster(Project):
    """A project whose commands use the test cluster."""

    conf = ""
    outputs: list[str]

    def write_profile(self, **changes: object) -> None:
        profile = SMALL_PROFILE | {"nodes": 2} | changes
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(profile))

    def environment(self, **more: str) -> dict[str, str]:
        variables = {"SLURM_CONF": self.conf, "SALMASK_CLUSTER": "cluster.yaml"}
        return super().environment(**variables | {"SALMASK_DEVICE": "cpu"} | more)

    def submissions(self, stage: str) -> list[Path]:
        return sorted(self.folder.glob(f"runs/{stage}-*/jobs/[0-9]*_submission.sh"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, cluster) -> OnCluster:
    params = copy.deepcopy(TINY)
    params["evaluate"]["protocols"] = ["knn"]
    project = OnCluster(tmp_path_factory.mktemp("project"), params)
    project.conf = str(cluster.conf)
    project.write_profile()
    commands = [["dvc", "repro", "saliency"], ["python", "-m", "slurm", "submit"], ["dvc", "repro"]]
    project.outputs = [project.run(*command) for command in commands]
    return project


def test_saliency_of_an_array_has_the_same_bytes_as_a_local_one(project, tmp_path, cluster):
    output, jobs = project.outputs[0], project.submissions("saliency")
    assert ", 2 tasks, to test" in output and len(jobs) == 1
    logs = [log.read_text() for log in sorted(jobs[0].parent.glob("*_0_log.out"))]
    assert len(logs) == 2 and all("saliency: " in log for log in logs)
    local = Project(tmp_path, yaml.safe_load((project.folder / "params.yaml").read_text()))
    for stage in ("prepare", "localizer", "saliency"):
        local.stage(stage)
    assert tree_digest(local.folder / STORE) == tree_digest(project.folder / STORE)


def test_nodes_with_another_kind_of_cpu_give_the_same_foreground(project, tmp_path):
    other = OnCluster(tmp_path, yaml.safe_load((project.folder / "params.yaml").read_text()))
    other.conf = project.conf
    other.write_profile(environment=SMALL_PROFILE["environment"] | NARROW)
    for stage in ("prepare", "localizer", "saliency"):
        other.stage(stage)
    (script,) = other.submissions("saliency")
    assert all(f"{name}={value}" in script.read_text() for name, value in NARROW.items())
    one, two = (SaliencyStore.open(p.folder / STORE) for p in (project, other))
    means = [read_rows(p.folder / STORE).mean for p in (project, other)]
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # the kernels differ
        assert any(not torch.equal(x, y) for x, y in zip(*(m.values() for m in means), strict=True))
    ids = torch.arange(len(manifest.load(project.folder / "artifacts/data")))
    for level in TINY["saliency"]["levels"]:
        x, y = (store.activation(ids, level).float() for store in (one, two))
        assert ((x - y).abs() <= 1e-3 * x.abs().clamp(min=1)).all()  # the precision of float16
        assert (foreground(x) == foreground(y)).float().mean() >= 0.999


def test_all_runs_are_submitted_at_the_same_time_and_collected_later(project):
    submitted, collected = project.outputs[1:]
    assert "2 of 2 runs are done or on the cluster" in submitted
    assert submitted.count("submitted as job") == 2
    assert len(project.submissions("pretrain")) == 2
    for name in ("plain", "blurred"):
        assert f"Running stage 'pretrain@{name}'" in collected
        assert (project.folder / "artifacts/pretrain" / name / "encoder.safetensors").exists()
    assert (project.folder / "artifacts/report/index.html").exists()
    assert len(project.submissions("knn")) == 2
    for script in project.submissions("pretrain") + project.submissions("knn"):
        assert "--nodes=2" in script.read_text()


def changed_stages(project) -> list[str]:
    """The stages that `dvc status` lists; `code` always runs."""
    return [line for line in project.run("dvc", "status").splitlines() if line.endswith(":")]


def test_another_profile_makes_no_stage_run_again(project):
    assert changed_stages(project) == ["code:"]
    project.write_profile(partition="short", time_min=1, signal_seconds=5, nodes=1, gpus=0, cpus=2)
    assert changed_stages(project) == ["code:"]
    assert project.repro() == []
    before = len(project.submissions("*"))
    project.run("dvc", "repro", "--single-item", "--force", "pretrain@plain", SALMASK_CLUSTER="")
    assert len(project.submissions("*")) == before  # the finished result is published again
    assert changed_stages(project) == ["code:"]


def test_no_jobs_or_temporary_files_remain(project, cluster):
    assert cluster.run("squeue", "--noheader") == ""
    runs = project.folder / "runs"
    assert not list(runs.rglob("*.partial")) and not list(runs.glob("*/work"))
    for lock in runs.glob("*/*lock*"):
        subprocess.run(["flock", "--nonblock", lock, "true"], check=True)
