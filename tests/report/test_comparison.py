"""The papers' tables with our numbers: valid and invalid entries of `tables:`, and their cells."""

import re
from typing import Any

import numpy as np
import pytest

from salmask.errors import UserError
from salmask.params.names import run_names
from salmask.params.run import read_run
from salmask.params.yaml_file import Params
from salmask.report import comparison, sweep_charts
from salmask.report.comparison import TableConfig
from salmask.report.sweep_charts import Sweep
from tests.helpers.tiny_report import params

RUNS = {"plain": {}, "high-a": {}, "high-b": {"seed": 1}}
SWEPT = {"high": {"keys": [], "settings": {"high": ["high-a", "high-b"]}}}
TABLE = {
    "columns": {"Top-1": "linear_fast_top1"},
    "rows": {"high-pass, positive mask": "plain", "mean fill, positive mask": "high"},
    "unpublished": {"ours alone": "high-a"},
}


def declaring(name: str = "chin 8", **changes: Any) -> Params:
    return Params(params(**RUNS) | {"sweeps": SWEPT, "tables": {name: TABLE | changes}})


def results(**scores: dict[str, float]) -> dict[str, Any]:
    return {"rows": [{"run": run, "metrics": metrics} for run, metrics in scores.items()]}


FOUND = {
    "rows": [
        {"run": run, "metrics": {"linear_fast_top1": score}}
        for run, score in (("plain", 56.25), ("high-a", 50.0), ("high-b", 54.0))
    ]
}


def filled(**changes: Any) -> comparison.Comparison:
    read = declaring(**changes)
    (made,) = comparison.compare(comparison.read_tables(read), sweep_charts.sweeps(read), FOUND)
    return made


def test_our_number_is_next_to_the_papers_with_the_difference() -> None:
    (cell,) = filled().rows["high-pass, positive mask"]
    assert str(cell.paper) == "55.25" and cell.mean == 56.25 and cell.difference == 1.0
    assert cell.format("linear_fast_top1") == "56.25"


def test_repeated_runs_have_a_mean_and_an_interval_by_students_t() -> None:
    (cell,) = filled().rows["mean fill, positive mask"]
    assert cell.mean == 52.0 and cell.difference == pytest.approx(52.0 - 55.18)
    # sd of 50 and 54 is 2.8284, over sqrt(2) it is 2; t of one degree of freedom is 12.706
    assert cell.format("linear_fast_top1") == "52.00 ± 25.41 (n 2)"
    assert filled().repeated


def test_a_row_of_ours_has_a_dash_for_the_paper() -> None:
    (cell,) = filled().rows["ours alone"]
    assert cell.paper is None and cell.difference is None and cell.mean == 50.0


def test_what_does_not_compare_has_no_difference() -> None:
    made = filled(comparable=False)
    assert all(cell.difference is None for cells in made.rows.values() for cell in cells)
    assert "difference" not in comparison.text(made)


def test_the_text_table_holds_everything() -> None:
    lines = comparison.text(filled()).splitlines()
    assert (
        lines[0].startswith("Chin et al. 2024, Table 8") and lines[1] == "(Top-1: linear_fast_top1)"
    )
    assert lines[2].split() == ["paper", "ours", "difference"]
    assert lines[4].split()[-3:] == ["55.25", "56.25", "+1.00"]
    assert lines[-1].split() == ["ours", "alone", "–", "50.00", "–"]


def test_a_table_with_many_columns_has_a_line_for_each_cell() -> None:
    columns = {f"{share}% top-{k}": "linear_fast_top1" for share in (1, 10) for k in (1, 5)}
    rows = {"Un-Mix": ["plain", "plain", "high", None]}
    made = filled(name="mixmask-preprint 6", columns=columns, rows=rows, unpublished={})
    lines = [line.split() for line in comparison.text(made).splitlines()]
    assert lines[-4][-3:] == ["47.41", "56.25", "+8.84"] and lines[-1][-3:] == ["87.40", "–", "–"]
    assert lines[-2][:4] == ["Un-Mix:", "10%", "top-1", "65.02"]


def test_numbers_are_in_the_papers_unit() -> None:
    entry = TableConfig({"Variance (1e-3)": "variance_pooled"}, {"standard": "plain"})
    content = {"rows": [{"run": "plain", "metrics": {"variance_pooled": 0.0072}}]}
    (made,) = comparison.compare({"chin 7": entry}, {}, content)
    (cell,) = made.rows["standard"]
    assert cell.mean == pytest.approx(7.2) and cell.difference == pytest.approx(7.2 - 6.196)
    assert cell.format("variance_pooled") == "7.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "chin 9"}, "tables.chin 9: there is no such table of a paper"),
        ({"columns": {"Top": "knn20_top1"}}, "8.columns: the paper has no 'Top'; it has: Top-1"),
        ({"rows": {"nobody": "plain"}}, "8.rows: the paper has no 'nobody'; it has: high-pass"),
        ({"unpublished": {"x": "lost"}}, "x: no run 'lost'; there are: plain, high-a, high-b"),
        ({"unpublished": {"x": ["plain", "plain"]}}, "x: 2 runs for 1 columns"),
        ({"columns": {"Top-1": "linear_top1"}}, "of this run computes linear_top1; there are: knn"),
        ({"columns": {"Top-1": "accuracy"}}, "no evaluation of this run computes accuracy"),
        ({"colums": {}}, "colums: no such key"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        comparison.read_tables(declaring(**change))


@pytest.mark.parametrize(
    ("metric", "folder"),
    [
        ("knn200_top1", "knn"), ("linear_fast_top1", "linear_fast"), ("linear_mscn_top1", "linear"),
        ("finetune10_top5", "finetune"), ("transfer_my_pets_top1", "transfer-my-pets"),
        ("variance_pooled", "variance"), ("detect_voc_box_ap", "detect-voc"),
    ],
)  # fmt: skip
def test_a_metrics_name_says_which_evaluation_makes_it(metric: str, folder: str) -> None:
    comparison._refuse_unevaluated(metric, [folder, "knn"], "x")
    with pytest.raises(UserError, match="no evaluation of this run computes"):
        comparison._refuse_unevaluated(metric, ["other", "linear_faster"], "x")


def test_a_sweep_of_lost_runs_is_the_users_to_repair() -> None:
    gone = Params(params(plain={}) | {"sweeps": SWEPT})
    with pytest.raises(
        UserError, match=r"sweeps\.high: there is no run high-a; write params\.yaml again"
    ):
        sweep_charts.sweeps(gone)


@pytest.mark.parametrize("count", [2, 3, 5, 21, 22, 40, 200])
def test_the_interval_is_students(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(size=count).tolist()
    low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    assert sweep_charts.half_width(values) == pytest.approx((high - low) / 2, rel=2e-4)


# ------------------------------------------------------------------------------------- responses


def swept(runs: dict[str, Any], sweeps: dict[str, Any], scores: dict[str, float]) -> Any:
    read = Params(params(**runs) | {"sweeps": sweeps})
    configs = {name: read_run(read, name) for name in run_names(read)}
    content = {"rows": [{"run": r, "metrics": {"m": s}} for r, s in scores.items()]}
    return sweep_charts.curves(sweep_charts.sweeps(read), configs, content, "m")


def masked(ratio: float, seed: int = 0) -> dict[str, Any]:
    return {"mask": {"name": "mscn", "ratio": ratio}, "seed": seed}


def test_a_line_holds_the_runs_that_differ_in_key_and_seed_alone() -> None:
    """A run outside the grid with the default ratio is a point of the line too."""
    runs = {
        "a-0": masked(0.3), "a-1": masked(0.3, 1), "b": masked(0.5),
        "default": {"mask": {"name": "mscn"}}, "other": {"mask": {"name": "mscn", "focal": 0.0}},
    }  # fmt: skip
    sweep = Sweep(["mask.ratio"], {"a": ["a-0", "a-1"], "b": ["b"]})
    scores = {"a-0": 1.0, "a-1": 3.0, "b": 5.0, "default": 7.0, "other": 9.0}
    curves = swept(runs, {"grid": {"keys": sweep.keys, "settings": sweep.settings}}, scores)
    (line,) = curves["mask.ratio"]
    assert line.name == "grid"
    assert sorted(line.points.values()) == [(0.15, [7.0]), (0.3, [1.0, 3.0]), (0.5, [5.0])]


def test_two_keys_make_two_panels_with_a_line_per_value_of_the_other() -> None:
    runs = {
        f"r{10 * ratio:g}f{10 * focal:g}": {
            "mask": {"name": "mscn", "ratio": ratio, "focal": focal}
        }
        for ratio in (0.1, 0.2)
        for focal in (0.0, 0.4)
    }
    sweeps = {"g": {"keys": ["mask.ratio", "mask.focal"], "settings": {n: [n] for n in runs}}}
    curves = swept(runs, sweeps, dict.fromkeys(runs, 1.0))
    assert [line.name for line in curves["mask.ratio"]] == ["g, mask.focal 0", "g, mask.focal 0.4"]
    assert [line.name for line in curves["mask.focal"]] == [
        "g, mask.ratio 0.1",
        "g, mask.ratio 0.2",
    ]
    drawn = sweep_charts.draw(curves)
    assert drawn == sweep_charts.draw(curves) and drawn.startswith(b"\x89PNG")


def test_ranges_and_names_are_drawn_too() -> None:
    runs = {"a": {"view": {"crop": [0.2, 1.0]}}, "b": {"view": {"crop": [0.5, 1.0]}}}
    sweeps = {"g": {"keys": ["view.crop"], "settings": {"a": ["a"], "b": ["b"]}}}
    curves = swept(runs, sweeps, {"a": 1.0, "b": 2.0})
    (line,) = curves["view.crop"]
    assert [sweep_charts.label(value) for value, _ in line.points.values()] == [
        "0.2 to 1",
        "0.5 to 1",
    ]
    assert sweep_charts.draw(curves).startswith(b"\x89PNG")
    assert swept(runs, sweeps, {}) == {}  # no run has this metric
