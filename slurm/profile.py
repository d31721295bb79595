"""Cluster profiles: where jobs run and with what. Never part of a result."""

import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from salmask.config import STRICT, check
from salmask.errors import UserError

CLUSTERS = Path(__file__).parent / "clusters"


@dataclass(frozen=True, config=STRICT)
class Profile:
    """executor: `local` runs the work in the waiting process. cpus: processor cores to use, all by
    default. checkpoint_minutes: the longest stretch of training that a kill can cost."""

    executor: Literal["local"] = "local"
    cpus: PositiveInt | None = None
    checkpoint_minutes: PositiveFloat = 15.0

    def cores(self) -> int:
        return self.cpus or len(os.sched_getaffinity(0))


def chosen() -> Profile:
    """The profile that SALMASK_CLUSTER names, else clusters/local.yaml. Raises UserError."""
    path = Path(os.environ.get("SALMASK_CLUSTER") or CLUSTERS / "local.yaml")
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in CLUSTERS.glob("*.yaml")))
        raise UserError(f"SALMASK_CLUSTER: no profile at {path}; there are {known}")
    return check(yaml.safe_load(path.read_text()) or {}, Profile, where=str(path))
