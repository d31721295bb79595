"""The description of one piece of work, which the launcher pickles and a job reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmask.provenance import Recipe
from slurm.profile import Profile

Work = Callable[..., None]  # called as work(job, **arguments)


@dataclass(frozen=True)
class JobArray:
    """How the jobs of an array share a piece of work, before its `Work` completes the result.

    Args:
        fill: called as `fill(job, index, size, **arguments)` in each job. It does share `index` of
            `size` and returns whether all shares are complete.
        pieces: the number of pieces that the work consists of: the maximum size of the array.
    """

    fill: Callable[..., bool]
    pieces: int


@dataclass(frozen=True)
class JobSpec:
    """One piece of work, and how to run it.

    Args:
        folder: the run's folder.
        project: the project's folder, to which the paths of the recipe's inputs are relative.
        recipe: everything that decides the result.
        profile: where and how the job runs.
        seed: the seed of the run.
        work: the function that does the work.
        arguments: keyword arguments of `work`.
        parallel: whether all tasks of the profile share the work; otherwise the job has one task.
        array: how several jobs share the work; None for one job.
        index: which job of the array this is.
        size: the number of jobs in the array.
    """

    folder: Path
    project: Path
    recipe: Recipe
    profile: Profile
    seed: int
    work: Work
    arguments: dict[str, Any]
    parallel: bool = False
    array: JobArray | None = None
    index: int = 0
    size: int = 1
