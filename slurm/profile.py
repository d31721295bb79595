"""Cluster profiles: where and how jobs run. They do not change results."""

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

# Options of sbatch that the launcher sets itself, or by which it identifies its jobs.
RESERVED_OPTIONS = (
    "array", "comment", "error", "job-name", "open-mode", "output", "requeue", "signal"
)  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class Profile:
    """A file of slurm/clusters/. clusters/example-gpu.yaml explains every field.

    Args:
        executor: `local` runs the work in the process of the stage, `local-jobs` in separate
            processes on the same machine, `slurm` in a Slurm job.
        cpus: processor cores of each task. None: one core in a Slurm job, else all cores of the
            machine, divided by the number of tasks.
        checkpoint_minutes: the maximum time between two checkpoints of a training.
    """

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
            if name.replace("_", "-") in RESERVED_OPTIONS:
                raise ValueError(f"additional.{name}: the launcher sets this option; remove it")

    def cores(self) -> int:
        """Number of threads of one task."""
        if self.executor == "slurm":
            return self.cpus or 1
        return self.cpus or max(1, len(os.sched_getaffinity(0)) // self.tasks_per_node)

    def tasks(self, parallel: bool) -> tuple[int, int]:
        """The number of nodes of a job, and of tasks on each node.

        Args:
            parallel: whether several tasks share the work of the job.
        """
        return (self.nodes, self.tasks_per_node) if parallel else (1, 1)

    def array_size(self, pieces: int) -> int:
        """The number of jobs in an array, for work that consists of so many pieces."""
        return min(self.nodes * self.tasks_per_node, pieces)

    def sbatch_options(self, parallel: bool) -> dict[str, Any]:
        """Parameters of submitit's SlurmExecutor for one job. parallel: as in `tasks`."""
        nodes, tasks = self.tasks(parallel)
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
            "stderr_to_stdout": True,
            "wckey": "",
            "additional_parameters": {**self.additional, "requeue": True},
        }


def read_profile() -> Profile:
    """The profile at the path in SALMASK_CLUSTER, else clusters/local.yaml. Raises UserError."""
    path = Path(os.environ.get("SALMASK_CLUSTER") or CLUSTERS / "local.yaml")
    if not path.is_file():
        available = ", ".join(sorted(str(p) for p in CLUSTERS.glob("*.yaml")))
        raise UserError(f"SALMASK_CLUSTER: there is no file {path}; profiles: {available}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return check(fields, Profile, where=str(path))
