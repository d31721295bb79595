"""Cluster profiles: what is refused, and what a stage's job asks of Slurm."""

from pathlib import Path

import pytest
import yaml

from salmask.errors import UserError
from slurm import profile


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A profile with these fields, read as a stage reads it."""

    def read(**fields: object) -> profile.Profile:
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(fields))
        monkeypatch.setenv("SALMASK_CLUSTER", str(path))
        return profile.chosen()

    return read


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"partitions": "gpu"}, "partitions"),
        ({"executor": "slurn"}, "executor"),
        ({"time_min": 1, "signal_seconds": 60}, "leaves no time to work"),
        ({"executor": "local-jobs", "nodes": 2}, "one machine"),
        ({"gpus": 2, "tasks_per_node": 1}, "each GPU of a node needs one task"),
        ({"additional": {"open_mode": "truncate"}}, "additional.open_mode"),
    ],
)
def test_what_makes_no_sense_is_refused(read, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        read(**fields)


def test_pretraining_and_evaluation_have_many_tasks(read):
    given = read(executor="slurm", nodes=2, tasks_per_node=4, gpus=4, cpus=8, mem_gb=32)
    for stage in ("knn", "linear", "detect"):
        assert given.sbatch(stage) == given.sbatch("pretrain")
    shared, alone = given.sbatch("knn"), given.sbatch("saliency")
    names = ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "mem")
    assert [shared[name] for name in names] == [2, 4, 4, 8, f"{4 * 32 * 1024}M"]
    assert [alone[name] for name in names] == [1, 1, 1, 8, f"{32 * 1024}M"]


def test_work_is_shared_by_no_more_jobs_than_it_has_pieces(read):
    given = read(executor="slurm", nodes=2, tasks_per_node=4)
    assert [given.shares(pieces) for pieces in (1, 7, 8, 1000)] == [1, 7, 8, 8]


@pytest.mark.parametrize("path", sorted(profile.CLUSTERS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_profiles_that_come_along_are_sound(monkeypatch, path: Path):
    monkeypatch.setenv("SALMASK_CLUSTER", str(path))
    assert profile.chosen().executor == (path.stem if "local" in path.stem else "slurm")


def test_every_field_is_explained_in_the_example():
    told = yaml.safe_load((profile.CLUSTERS / "example-gpu.yaml").read_text())
    assert set(told) == set(profile.Profile.__dataclass_fields__)
