"""The estimate of a suite's cost."""

import copy
from pathlib import Path
from typing import Any

import pytest

from salmask.commands.costs import estimate
from salmask.params.yaml_file import Params
from tests.helpers.project import TINY


def hours(tmp_path: Path, run: dict[str, Any]) -> float:
    params = Params(copy.deepcopy(TINY) | {"runs": {"run": run}})
    estimated = estimate(params, tmp_path).hours
    assert estimated is not None
    return estimated


def test_passes_of_a_training(tmp_path: Path) -> None:
    """Relative to supervised training, where a query has one forward and backward pass: MoCo adds
    a forward pass of each key, and of each hard negative. No epochs are no training."""
    untrained = hours(tmp_path, {"train": {"epochs": 0}})
    supervised = {"framework": {"name": "supervised", "classes": 12}}
    one = hours(tmp_path, supervised) - untrained
    assert one > 0
    for run, passes in (
        ({}, 1 + 1 / 3),
        ({"mask": {"name": "blur"}}, 1 + 2 / 3),
        ({**supervised, "mask": {"name": "blur", "hard_negative": None}}, 1),
    ):
        assert (hours(tmp_path, run) - untrained) / one == pytest.approx(passes)
