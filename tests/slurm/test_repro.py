"""`dvc repro` of a whole tiny project with a cluster: an array for saliency, two nodes for each
pretraining, all of them submitted at once, and nothing of it in the way of DVC."""

import copy
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from salmask.data import manifest
from salmask.provenance import tree_digest
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore, read_rows
from tests.helpers.desk import TINY as PROFILE
from tests.helpers.project import TINY, Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STORE = Path("artifacts/saliency/saliency.zarr")
# Kernels for a CPU without wide registers, which add in another spec.
NARROW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


class OnCluster(Project):
    """A project that always says where its jobs run."""

    conf = ""
    ran: list[str]

    def profile(self, **changes: object) -> None:
        profile = PROFILE | {"nodes": 2} | changes
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(profile))

    def environment(self, **more: str) -> dict[str, str]:
        there = {"SLURM_CONF": self.conf, "SALMASK_CLUSTER": "cluster.yaml"}
        return super().environment(**there | {"SALMASK_DEVICE": "cpu"} | more)

    def submissions(self, stage: str) -> list[Path]:
        return sorted(self.folder.glob(f"runs/{stage}-*/jobs/[0-9]*_submission.sh"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, cluster) -> OnCluster:
    params = copy.deepcopy(TINY)
    params["evaluate"]["protocols"] = ["knn"]
    made = OnCluster(tmp_path_factory.mktemp("project"), params)
    made.conf = str(cluster.conf)
    made.profile()
    made.ran = [made.run("dvc", "repro", "saliency")]
    made.ran += [made.run("python", "-m", "slurm", "submit")]
    made.ran += [made.run("dvc", "repro")]
    return made


def test_saliency_is_shared_by_both_nodes_and_has_the_bytes_of_a_local_one(
    project, tmp_path, cluster
):
    said, jobs = project.ran[0], project.submissions("saliency")
    assert ", 2 tasks, to test" in said and len(jobs) == 1
    on = [log.read_text() for log in sorted(jobs[0].parent.glob("*_0_log.out"))]
    assert len(on) == 2 and all("saliency: " in text for text in on)
    alone = Project(tmp_path, yaml.safe_load((project.folder / "params.yaml").read_text()))
    for stage in ("prepare", "localizer", "saliency"):
        alone.stage(stage)
    assert tree_digest(alone.folder / STORE) == tree_digest(project.folder / STORE)


def test_nodes_with_another_kind_of_cpu_find_the_same_foreground(project, tmp_path):
    other = OnCluster(tmp_path, yaml.safe_load((project.folder / "params.yaml").read_text()))
    other.conf = project.conf
    other.profile(environment=PROFILE["environment"] | NARROW)
    for stage in ("prepare", "localizer", "saliency"):
        other.stage(stage)
    (script,) = other.submissions("saliency")
    assert all(f"{name}={value}" in script.read_text() for name, value in NARROW.items())
    one, two = (SaliencyStore.open(made.folder / STORE) for made in (project, other))
    means = [read_rows(made.folder / STORE).mean for made in (project, other)]
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # the kernels were others
        assert any(not torch.equal(x, y) for x, y in zip(*(m.values() for m in means), strict=True))
    ids = torch.arange(len(manifest.load(project.folder / "artifacts/data")))
    for level in TINY["saliency"]["levels"]:
        x, y = (store.activation(ids, level).float() for store in (one, two))
        assert ((x - y).abs() <= 1e-3 * x.abs().clamp(min=1)).all()  # float16 keeps no more
        assert (foreground(x) == foreground(y)).float().mean() >= 0.999


def test_all_runs_are_submitted_at_once_and_only_collected_afterwards(project):
    submitted, collected = project.ran[1:]
    assert "2 of 2 runs are done or on the cluster" in submitted
    assert submitted.count("submitted as job") == 2
    assert len(project.submissions("pretrain")) == 2
    for name in ("plain", "blurred"):
        assert f"Running stage 'pretrain@{name}'" in collected
        assert (project.folder / "artifacts/pretrain" / name / "encoder.safetensors").exists()
    assert (project.folder / "artifacts/report/index.html").exists()
    for script in project.submissions("pretrain"):
        assert "--nodes=2" in script.read_text()


def test_nothing_runs_again_whatever_becomes_of_the_profile(project):
    assert "up to date" in project.run("dvc", "status")
    project.profile(partition="short", time_min=1, signal_seconds=5, nodes=1, gpus=0, cpus=2)
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == []
    before = len(project.submissions("*"))
    project.run("dvc", "repro", "--single-item", "--force", "pretrain@plain", SALMASK_CLUSTER="")
    assert len(project.submissions("*")) == before  # what is done is published again
    assert "up to date" in project.run("dvc", "status")


def test_nothing_is_left_on_the_cluster_or_in_the_folders(project, cluster):
    assert cluster.run("squeue", "--noheader") == ""
    runs = project.folder / "runs"
    assert not list(runs.rglob("*.partial")) and not list(runs.glob("*/work"))
    for lock in runs.glob("*/*lock*"):
        subprocess.run(["flock", "--nonblock", lock, "true"], check=True)
