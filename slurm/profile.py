"""Cluster profiles: where jobs run and with what. Never part of a result."""

import os
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from salmask.errors import UserError
from salmask.params.values import STRICT, check

CLUSTERS = Path(__file__).parent / "clusters"

# The stages whose processes can share one piece of work; every other stage is a job of one task.
SHARED = ("pretrain", "knn", "linear_fast", "linear", "finetune", "transfer", "detect", "variance")

# What the launcher itself tells sbatch, or finds its jobs by.
RESERVED = ("array", "comment", "error", "job-name", "open-mode", "output", "requeue", "signal")


@dataclass(frozen=True, config=STRICT)
class Profile:
    """executor: `local` runs the work in the waiting process, `local-jobs` in processes of its own
    on the same machine, `slurm` in a job. cpus: processor cores of each task; all by default, or
    one in a job. checkpoint_minutes: the longest stretch of pretraining or detection that a kill
    can cost. All others are for jobs, and explained in clusters/example-gpu.yaml."""

    executor: Literal["local", "local-jobs", "slurm"] = "local"
    cpus: PositiveInt | None = None
    checkpoint_minutes: PositiveFloat = 15.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: PositiveInt = 1
    tasks_per_node: PositiveInt = 1
    gpus: NonNegativeInt = 0
    mem_gb: PositiveFloat | None = None
    time_min: PositiveInt | None = None
    signal_seconds: PositiveInt = 90
    max_requeues: NonNegativeInt = 30
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    additional: dict[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpus and self.gpus != self.tasks_per_node:
            raise ValueError(
                f"gpus {self.gpus} and tasks_per_node {self.tasks_per_node} differ: each GPU of a "
                "node needs one task"
            )
        if self.executor == "local-jobs" and self.nodes > 1:
            raise ValueError(f"nodes {self.nodes}: local-jobs run on one machine")
        if self.time_min is not None and 60 * self.time_min <= self.signal_seconds:
            raise ValueError(
                f"signal_seconds {self.signal_seconds} leaves no time to work in time_min "
                f"{self.time_min}"
            )
        for name in self.additional:
            if name.replace("_", "-") in RESERVED:
                raise ValueError(f"additional.{name}: the launcher sets this itself")

    def cores(self) -> int:
        """Threads of one process."""
        if self.executor == "slurm":
            return self.cpus or 1
        return self.cpus or max(1, len(os.sched_getaffinity(0)) // self.tasks_per_node)

    def tasks(self, stage: str) -> tuple[int, int]:
        """How many nodes a stage's job has, and tasks on each."""
        return (self.nodes, self.tasks_per_node) if stage in SHARED else (1, 1)

    def shares(self, pieces: int) -> int:
        """How many jobs of one task share work of so many pieces."""
        return min(self.nodes * self.tasks_per_node, pieces)

    def sbatch(self, stage: str) -> dict[str, Any]:
        """What submitit's SlurmExecutor is told of a stage's job."""
        nodes, tasks = self.tasks(stage)
        return {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "nodes": nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": self.cores(),
            "gpus_per_node": min(self.gpus, tasks) or None,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024) * tasks}M",
            "time": self.time_min,
            "signal_delay_s": self.signal_seconds,
            "additional_parameters": {**self.additional, "requeue": True},
        }


def chosen() -> Profile:
    """The profile that SALMASK_CLUSTER names, else clusters/local.yaml. Raises UserError."""
    path = Path(os.environ.get("SALMASK_CLUSTER") or CLUSTERS / "local.yaml")
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in CLUSTERS.glob("*.yaml")))
        raise UserError(f"SALMASK_CLUSTER: no profile at {path}; there are {known}")
    try:
        fields = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return check(fields, Profile, where=str(path))
