"""Suites: extension and expansion of grids. The suites of the repository: tests/suites."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from salmask.commands import grids, suites
from salmask.commands.check import validate
from salmask.errors import UserError
from salmask.params.names import CHOSEN
from salmask.params.yaml_file import Params
from tests.helpers.project import TINY

COMMON = {"mask": {"name": "blur"}, "runs": {"plain": {}, "other": {"train": {"epochs": 2}}}}


def project(folder: Path, **files: Any) -> Path:
    """A project with these mappings as suites; `__` in a name stands for a slash."""
    for name, values in files.items():
        path = folder / "suites" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


# --------------------------------------------------------------------------------------- extends


def test_a_suite_is_laid_over_what_it_extends_and_later_ones_win(tmp_path: Path) -> None:
    root = project(
        tmp_path,
        recipes__a={
            "seed": 1,
            "view": {"size": 64, "grid": 8},
            "data": {"name": "demo", "root": "x"},
        },
        recipes__b={"seed": 2, "data": {"name": "imagefolder", "root": "y"}},
        mine={"extends": ["recipes/a", "recipes/b"], "view": {"grid": 4}, "runs": {"plain": {}}},
    )
    values = suites.load(root, "mine").values
    assert values["seed"] == 2 and values["view"] == {"size": 64, "grid": 4}
    # another name replaces all options
    assert values["data"] == {"name": "imagefolder", "root": "y"}
    assert "extends" not in values and suites.names(root) == ["mine"]


def test_a_run_or_table_that_is_null_is_taken_out_and_others_are_completed(tmp_path: Path) -> None:
    base = COMMON | {"tables": {"chin 1": {"rows": {}}}}
    later = {"extends": "base", "tables": {"chin 1": None}}
    later["runs"] = {"plain": None, "other": {"view": {"grid": 2}}}
    values = suites.load(project(tmp_path, base=base, later=later), "later").values
    assert values["runs"] == {"other": {"train": {"epochs": 2}, "view": {"grid": 2}}}
    assert values["tables"] == {}


def test_a_data_set_that_is_null_is_taken_out(tmp_path: Path) -> None:
    sets = {"a": {"name": "flowers102", "root": "a"}, "b": {"name": "caltech101", "root": "b"}}
    base = COMMON | {"transfer": sets, "detect": {"c": {"data": {"name": "demo"}}}}
    later = {"extends": "base", "transfer": {"a": None}, "detect": {"c": None}}
    values = suites.load(project(tmp_path, base=base, later=later), "later").values
    assert values["transfer"] == {"b": sets["b"]} and values["detect"] == {}


def test_what_dvc_looks_for_is_there_even_if_empty(tmp_path: Path) -> None:
    values = suites.load(project(tmp_path, a=COMMON), "a").values
    for key in ("tables", "sweeps", "imports", "transfer", "detect"):
        assert values[key] == {}
    assert set(values["evaluate"]["chosen"]) == set(CHOSEN)


def test_a_protocol_with_a_stage_of_its_own_is_chosen_for_everything(tmp_path: Path) -> None:
    evaluate = {"protocols": ["knn", "linear"], "chosen": {"finetune": ["plain"]}}
    suite = COMMON | {"evaluate": evaluate, "imports": {"moco": {"path": "x", "arch": "resnet50"}}}
    section = suites.load(project(tmp_path, a=suite), "a").values["evaluate"]
    assert section["protocols"] == ["knn"]
    assert section["chosen"]["linear"] == [*COMMON["runs"], "moco"]
    assert section["chosen"]["finetune"] == ["plain"] and section["chosen"]["detect"] == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"extends": "b"}}, "suites/a.yaml: extends: there is no suites/b.yaml"),
        ({"a": {"extends": "b"}, "b": {"extends": ["a"]}}, "extends itself: a -> b -> a"),
        (
            {"a": {"extends": 3}},
            "suites/a.yaml: extends: must be the name of a suite or a list of names",
        ),
        ({"a": {"runs": ["plain"]}}, "suites/a.yaml: runs: must be a mapping, got ['plain']"),
        ({"b": {}}, "no suite `a`; there are: b"),
    ],
)
def test_a_suite_that_cannot_be_read_is_an_error(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        suites.load(project(tmp_path, **files), "a")


# ----------------------------------------------------------------------------------------- grids


def test_a_grid_is_one_run_for_every_combination_with_seeds_last() -> None:
    entry = {"mask": {"name": "mean"}, "mask.ratio": [0.05, [0.1, 0.25]], "seed": [0, 7]}
    runs, swept = grids.expand({"plain": {}, "mean": entry}, "suites/x.yaml")
    ratios = {"mean-ratio-0p05": 0.05, "mean-ratio-0p1-0p25": [0.1, 0.25]}
    repeated = {
        f"{name}-seed-{seed}": {"mask": {"name": "mean", "ratio": ratio}, "seed": seed}
        for name, ratio in ratios.items()
        for seed in (0, 7)
    }
    assert runs == {"plain": {}} | repeated
    settings = {name: [f"{name}-seed-0", f"{name}-seed-7"] for name in ratios}
    assert swept == {"mean": {"keys": ["mask.ratio"], "settings": settings}}


def test_seeds_alone_repeat_a_run_and_one_seed_is_no_grid() -> None:
    runs, swept = grids.expand({"a": {"seed": [3]}, "b": {"seed": 4}}, "x")
    assert runs == {"a-seed-3": {"seed": 3}, "b": {"seed": 4}}
    assert swept == {"a": {"keys": [], "settings": {"a": ["a-seed-3"]}}}


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ({"train.lr": [1e-4, 3.0, 1]}, ["r-lr-0p0001", "r-lr-3p0", "r-lr-1"]),
        ({"mask.negative": [None, {"count": 2}]}, ["r-negative-none", "r-negative-count-2"]),
        ({"mask.name": ["mixmask_star"]}, ["r-name-mixmask-star"]),
        ({"mask.switch": [True, False]}, ["r-switch-true", "r-switch-false"]),
        (  # two keys have the same last part, so the names contain the whole keys
            {"mask.momentum": [0.9], "train.momentum": [-1]},
            ["r-mask-momentum-0p9-train-momentum-m1"],
        ),
    ],
)  # fmt: skip
def test_names_contain_key_and_value(axes: dict[str, Any], names: list[str]) -> None:
    assert list(grids.expand({"r": axes}, "x")[0]) == names


VALUES = st.lists(st.floats(0, 1) | st.integers(0, 9), min_size=1, max_size=3, unique_by=grids.slug)


@given(st.dictionaries(st.sampled_from(["mask.a", "mask.b", "view.a"]), VALUES, min_size=1))
def test_a_grid_has_as_many_runs_as_combinations_all_with_names_for_dvc(
    axes: dict[str, Any],
) -> None:
    runs, _ = grids.expand({"r": axes}, "x")
    count = 1
    for values in axes.values():
        count *= len(values)
    assert len(runs) == count
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in runs)
    for key, values in axes.items():
        section, option = key.split(".")
        assert {run[section][option] for run in runs.values()} == set(values)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": {"mask.ratio": [0.5]}, "a-ratio-0p5": {}}, "would have the name a-ratio-0p5"),
        ({"a": {"mask.ratio": [0.5, "0p5"]}}, "two runs would have the name a-ratio-0p5"),
        ({"a": {"seed": [1, 1]}}, "two runs would have the name a-seed-1"),
        ({"a": {"mask.ratio": 0.5}}, "runs.a.mask.ratio: must be a list of values, got 0.5"),
        ({"a": {"mask.ratio": []}}, "must be a list of values, got []"),
    ],
)  # fmt: skip
def test_two_runs_of_one_name_are_an_error(runs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        grids.expand(runs, "suites/x.yaml")


def test_a_chosen_grid_stands_for_its_runs(tmp_path: Path) -> None:
    values = COMMON | {"runs": {"a": {"mask.ratio": [0.1, 0.2], "seed": [0, 1]}, "b": {}}}
    values["evaluate"] = {"chosen": {"linear": ["a", "b"], "finetune": ["a-ratio-0p2"]}}
    chosen = suites.load(project(tmp_path, a=values), "a").values["evaluate"]["chosen"]
    assert chosen["finetune"] == ["a-ratio-0p2-seed-0", "a-ratio-0p2-seed-1"]
    assert len(chosen["linear"]) == 5 and chosen["linear"][-1] == "b"


@pytest.mark.parametrize("entry", [{"mask.ratio": [0.1]}, {"seed": [0, 1]}])
def test_a_grid_left_in_params_is_refused_with_the_advice(entry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"runs\.a\..*: a grid is expanded by `salmask suite NAME`"):
        validate(Params(TINY | {"runs": {"a": entry}}))


# -------------------------------------------------------------------------------------- in place


def test_written_params_are_read_back_and_manual_edits_are_detected(tmp_path: Path) -> None:
    shared = {"ratio": [0.1, 0.2]}
    values = COMMON | {"runs": {"a": {"mask": shared}, "b": {"mask": shared}}}
    params = suites.load(project(tmp_path, a=values), "a")
    written = suites.text("a", params)
    assert yaml.safe_load(written) == params.values and "&id" not in written
    assert suites.is_unedited(written)
    assert not suites.is_unedited(written.replace("0.2", "0.3"))
    assert not suites.is_unedited("seed: 0\n")
