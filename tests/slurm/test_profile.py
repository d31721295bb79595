"""Cluster profiles: which values are refused, and which options a job gives to sbatch."""

from pathlib import Path

import pytest
import yaml

from salmask.errors import UserError
from slurm import profile


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A function that reads a profile with these fields, as a stage does."""

    def read(**fields: object) -> profile.Profile:
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(fields))
        monkeypatch.setenv("SALMASK_CLUSTER", str(path))
        return profile.read_profile()

    return read


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"partitions": "gpu"}, "partitions"),
        ({"executor": "slurn"}, "executor"),
        ({"time_min": 1, "signal_seconds": 60}, "leaves no time to work"),
        ({"executor": "local-jobs", "nodes": 2}, "one machine"),
        ({"gpus": 2, "tasks_per_node": 1}, "each GPU of a node needs one task"),
        ({"additional": {"open_mode": "truncate"}}, "additional.open_mode"),
    ],
)
def test_invalid_profiles_are_refused(read, fields, message):
    with pytest.raises(UserError, match=message):
        read(**fields)


def test_a_parallel_job_has_all_tasks_of_the_profile(read):
    cluster = read(executor="slurm", nodes=2, tasks_per_node=4, gpus=4, cpus=8, mem_gb=32)
    parallel, single = cluster.sbatch_options(parallel=True), cluster.sbatch_options(parallel=False)
    names = ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "mem")
    assert [parallel[name] for name in names] == [2, 4, 4, 8, f"{4 * 32 * 1024}M"]
    assert [single[name] for name in names] == [1, 1, 1, 8, f"{32 * 1024}M"]


def test_an_array_has_no_more_jobs_than_the_work_has_pieces(read):
    cluster = read(executor="slurm", nodes=2, tasks_per_node=4)
    assert [cluster.array_size(pieces) for pieces in (1, 7, 8, 1000)] == [1, 7, 8, 8]


@pytest.mark.parametrize("path", sorted(profile.CLUSTERS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_profiles_of_the_repository_are_valid(monkeypatch, path: Path):
    monkeypatch.setenv("SALMASK_CLUSTER", str(path))
    executor = path.stem if "local" in path.stem else "slurm"
    assert profile.read_profile().executor == executor


def test_the_example_explains_every_field():
    example = yaml.safe_load((profile.CLUSTERS / "example-gpu.yaml").read_text())
    assert set(example) == set(profile.Profile.__dataclass_fields__)
