"""The numbers that the report reads and compares, on tiny made-up projects."""

import json
from pathlib import Path

from salmask.lineage import Link
from salmask.report import tables
from tests.helpers.tiny_report import KNN

# -------------------------------------------------------------------------------------- tables


def test_results_hold_the_metrics_of_every_protocol_and_their_lineage(built) -> None:
    project, _, _ = built
    rows = json.loads((project / "artifacts/report/results.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["plain", "masked"]  # in the order of params.yaml
    assert rows[0]["dataset"] == "mine"
    assert rows[0]["metrics"] == KNN | {"linear_fast_top1": 61.0}
    for step in ("knn:plain@", "linear_fast:plain@", "pretrain:plain@"):
        assert step in rows[0]["lineage"]
    assert "masked" not in rows[0]["lineage"] and "\n" not in rows[0]["lineage"]


def scores(**metrics: float) -> list[tables.SplitResults]:
    evaluations = [evaluation("a", "knn", KNN), evaluation("b", "knn", metrics)]
    return tables.results_by_split(evaluations, {"val": "", "far": "far_"}, ["knn"])


def evaluation(run: str, folder: str, metrics: dict[str, float]) -> tables.RunMetrics:
    return tables.RunMetrics(run, folder, metrics, Link(Path(), {}))


def test_gain_is_in_points_over_the_untrained_encoder_and_small_k_comes_first() -> None:
    (block,) = scores(knn20_top1=30.0)  # nothing was scored on `far`
    first, second = block.common
    assert (first.name, second.name) == ("knn20_top1", "knn200_top1")
    assert first.scores["a"].gain == 30.0
    assert second.scores["a"].gain is None and first.scores["b"].gain is None


def test_metrics_of_another_split_have_their_own_table() -> None:
    val, far = scores(far_knn20_top1=7.0, far_random_knn20_top1=3.0)
    assert val.common[0].scores["b"].value is None
    (metric,) = far.common
    assert (far.split, metric.name, metric.scores["b"].gain) == ("far", "knn20_top1", 4.0)


def test_what_is_missing_is_a_dash_in_the_text_table() -> None:
    lines = tables.text(scores(knn20_top1=30.0)).splitlines()
    assert lines[0].split() == ["val", "k-NN", "random", "gain", "k-NN"]
    assert lines[1].split() == ["knn20_top1", "knn200_top1"]
    assert lines[3].split() == ["a", "50.00", "20.00", "+30.00", "40.00"]
    assert lines[4].split() == ["b", "30.00", "–", "–", "–"]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_evaluations_of_some_runs_have_a_separate_table_with_a_metric_per_line() -> None:
    evaluations = [
        evaluation("a", "knn", KNN),
        evaluation("b", "knn", KNN),
        evaluation("b", "finetune", {"finetune1_top1": 71.25, "far_finetune1_top1": 8.0}),
        evaluation("b", "variance", {"variance_pooled": 0.00123456, "variance_uniformity": -3.1}),
    ]
    results = tables.results_by_split(evaluations, {"val": "", "far": "far_"}, ["knn"])
    names = [[metric.name for metric in split.common] for split in results]
    assert names == [["knn20_top1", "knn200_top1"], []]
    val, far = (part.split("\n\n") for part in tables.text(results).split("\n\nfar"))
    assert "finetune" not in val[0]
    lines = [line.split() for line in val[1].splitlines()]
    assert lines[0] == ["val", "b"] and lines[2:] == [
        ["fine-tuning", "finetune1_top1", "71.25"],
        ["variance", "of", "features", "variance_pooled", "0.001235"],
    ]  # fmt: skip
    assert [m.name for m in results[0].details] == [
        "variance_uniformity"
    ]  # in a closed section of the page
    assert far[0].splitlines()[-1].split() == ["fine-tuning", "finetune1_top1", "8.00"]


def test_the_best_run_is_the_one_with_the_best_first_knn() -> None:
    assert tables.best_run(scores(knn20_top1=51.0, knn200_top1=1.0), ["a", "b"])[0] == "b"
    assert tables.best_run([], ["a", "b"])[0] == "a"
