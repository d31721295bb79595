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


def test_features_count_once_for_each_encoder(tmp_path: Path) -> None:
    """A second run has features of its own, and shares those of untrained encoders if its input is
    the same. A filtered input has three more."""

    def disk(runs: dict[str, Any], protocols: list[str]) -> float:
        values = copy.deepcopy(TINY) | {"runs": runs}
        values["evaluate"] = values["evaluate"] | {
            "protocols": protocols,
            "knn": {"random_seeds": 3},
        }
        estimated = estimate(Params(values), tmp_path).disk
        assert estimated is not None
        return estimated

    def features(runs: dict[str, Any]) -> float:
        return disk(runs, ["knn"]) - disk(runs, [])

    one = features({"a": {}}) / 4  # one trained and three untrained encoders
    assert features({"a": {}, "b": {"mask": {"name": "blur"}}}) == pytest.approx(5 * one)
    assert features({"a": {}, "b": {"mask": {"name": "high_pass"}}}) == pytest.approx(8 * one)
