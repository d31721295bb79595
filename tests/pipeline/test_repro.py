"""The whole pipeline under DVC, on a tiny demo: which stages run, and what they write.

Tests that change nothing read the finished project; every other test has a copy of its own.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from salmask.files import tree_digest
from tests.helpers.project import TINY, Project
from tests.pipeline.conftest import FINISHED

pytestmark = pytest.mark.pipeline

STAGES_OF_ALL_RUNS = ["code", "prepare", "localizer", "saliency", "report",
                      "transfer_data@shapes", "detect_data@scenes"]  # fmt: skip
CHOSEN_STAGES = ["linear@plain", "finetune@plain", "transfer@plain-shapes", "detect@plain-scenes",
                 "variance@blurred", "variance-through@blurred-plain"]  # fmt: skip
REBUILT = ["data", "localizer", "saliency", "pretrain/blurred", "evaluate/blurred/knn",
           "evaluate/blurred/linear_fast"]  # fmt: skip


def stages_of(run: str, *protocols: str) -> list[str]:
    """The stages that every run has, with these protocols."""
    return [f"pretrain@{run}", *(f"evaluate@{run}-{protocol}" for protocol in protocols)]


def with_runs(**runs: Any) -> dict[str, Any]:
    """The parameters of the finished project, with these entries under `runs`."""
    params = copy.deepcopy(FINISHED)
    params["runs"] |= runs
    return params


def without_choices(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without the evaluations of chosen runs and their data sets."""
    evaluate = params["evaluate"] | {"chosen": TINY["evaluate"]["chosen"]}
    return params | {"transfer": {}, "detect": {}, "evaluate": evaluate}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of results.json, by run."""
    results = json.loads((folder / "artifacts/report/results.json").read_text())
    return {row["run"]: row for row in results["rows"]}


# ------------------------------------------------------------------------ the finished project


def test_results_list_every_run_with_its_lineage(finished: Path) -> None:
    rows = read_results(finished)
    assert list(rows) == ["plain", "blurred"]
    for row in rows.values():
        assert row["dataset"] == "demo"
        assert {"knn5_top1", "decorrelated_knn5_top1", "linear_fast_top1"} <= set(row["metrics"])
        percent = {k: v for k, v in row["metrics"].items() if "variance" not in k}
        assert all(0 <= value <= 100 for value in percent.values())
        assert "pretrain" in row["lineage"] and "saliency" in row["lineage"]


def test_results_hold_the_metrics_of_chosen_evaluations(finished: Path) -> None:
    rows = read_results(finished)
    plain, blurred = rows["plain"]["metrics"], rows["blurred"]["metrics"]
    for metric in ("linear_top1", "finetune10_top1", "finetune10_top5"):
        assert {metric, f"decorrelated_{metric}"} <= plain.keys() - blurred.keys()
    assert {"transfer_shapes_top1", "transfer_shapes_mean_per_class"} <= plain.keys()
    assert {"variance_pooled", "decorrelated_variance_uniformity"} <= blurred.keys() - plain.keys()
    assert {"variance_projected_unit", "variance_through_plain_projected"} <= blurred.keys()
    assert (finished / "artifacts/evaluate/plain/linear/history.csv").is_file()
    assert "linear_top1" in (finished / "artifacts/report/results.txt").read_text()


def test_the_page_needs_no_network(finished: Path) -> None:
    page = (finished / "artifacts/report/index.html").read_text()
    assert "data:image/png;base64," in page
    for attribute in ('src="http', 'href="http', "url(http", "@import"):
        assert attribute not in page


def test_every_stage_reads_exactly_the_params_that_dvc_yaml_declares(finished: Path) -> None:
    check_params(finished)


def check_params(folder: Path) -> None:
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    for file in folder.glob("artifacts/**/provenance.json"):
        provenance = json.loads(file.read_text())
        stage, name = provenance["stage"], provenance["name"]
        names = [stage, f"{stage}@{name}", f"{stage}-through@{name}", f"evaluate@{name}-{stage}"]
        (key,) = [name for name in names if name in stages]
        declared = set(stages[key].get("params", {}).get("params.yaml", {}))
        read = set(provenance["params"])
        undeclared = {param for param in read if not is_within(param, declared)}
        assert not undeclared, f"{key} reads {undeclared}, which dvc.yaml does not declare"
        unused = {p for p in declared if not is_within(p, read) and not contains_one(p, read)}
        assert not unused, f"{key} declares {unused}, which it does not read"


def is_within(key: str, keys: set[str]) -> bool:
    return any(key == other or key.startswith(other + ".") for other in keys)


def contains_one(key: str, keys: set[str]) -> bool:
    return any(other.startswith(key + ".") for other in keys)


@pytest.mark.parametrize(
    "evaluation",
    ["plain/linear", "plain/transfer-shapes", "blurred/variance", "blurred/variance-plain"],
)
def test_lineage_of_every_evaluation_matches(finished: Path, evaluation: str) -> None:
    metrics = f"artifacts/evaluate/{evaluation}/metrics.json"
    assert "everything matches" in Project.at(finished).salmask("lineage", metrics)


# -------------------------------------------------------------------------- changes of a copy


def test_lineage_reports_a_changed_byte(project: Project) -> None:
    metrics = "artifacts/evaluate/blurred/knn/metrics.json"
    output = project.salmask("lineage", metrics, "--images")
    assert "everything matches" in output
    for part in ("pretrain blurred", "saliency", "localizer", "prepare", "160 of 160 images"):
        assert part in output
    history = project.folder / "artifacts/pretrain/blurred/history.csv"
    content = history.read_bytes()
    history.unlink()  # a link into DVC's cache
    history.write_bytes(content.replace(b"1", b"2", 1))
    output = project.salmask("lineage", metrics, code=1)
    assert "history.csv has changed since it was made" in output


def test_a_comment_reruns_nothing_and_other_code_what_depends_on_it(project: Project) -> None:
    project.write_params(FINISHED | {"probe": {"every": 2}})
    changed = [line for line in project.run("dvc", "status").splitlines() if line.endswith(":")]
    assert changed == ["code:"]  # it always runs
    for name in ("salmask/losses.py", "salmask/datasets/demo_images.py", "stages/prepare.py"):
        path = project.folder / name
        path.write_text(path.read_text() + "\n# a comment\n")
    assert project.repro() == []
    # `prepare` makes the same files again, so nothing that reads them runs again.
    append_code(project, "salmask/datasets/reader.py")
    evaluations = ("evaluate", "linear", "transfer")
    assert sorted(project.repro(*evaluations)) == ["prepare", "transfer_data@shapes"]
    append_code(project, "salmask/evaluate/linear_fast.py")
    assert sorted(project.repro(*evaluations)) == [
        "evaluate@blurred-linear_fast", "evaluate@plain-linear_fast"
    ]  # fmt: skip


def append_code(project: Project, name: str) -> None:
    path = project.folder / name
    path.write_text(path.read_text() + "\nUNUSED = 1\n")


def test_the_mask_ratio_of_a_run_reruns_that_run_only(project: Project) -> None:
    project.write_params(with_runs(blurred={"mask": {"name": "blur", "ratio": [0.1, 0.2]}}))
    chosen = ["variance@blurred", "variance-through@blurred-plain"]
    ran = [*stages_of("blurred", "knn", "linear_fast"), *chosen]
    evaluations = ("evaluate", "linear", "transfer", "detect", "variance", "variance-through")
    assert sorted(project.repro(*evaluations)) == sorted(ran)


def write_suite(project: Project, seeds: list[int]) -> None:
    """Replaces params.yaml by a suite with one more run, repeated over seeds."""
    entry = {"mask": {"name": "mean"}, "seed": seeds}
    table = {"columns": {"Top-1": "knn5_top1"}, "rows": {"mean fill, positive mask": "mean"}}
    suite = with_runs(mean=entry) | {"tables": {"chin 8": table}}
    suite["evaluate"]["protocols"] = ["knn"]
    (project.folder / "suites/mine.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    (project.folder / "params.yaml").unlink()  # `salmask suite` replaces no file with changes
    assert f"({2 + len(seeds)} runs)" in project.salmask("suite", "mine")


def test_a_suite_with_another_run_or_seed_runs_only_these(project: Project) -> None:
    write_suite(project, [0])
    listed = project.run("dvc", "stage", "list", "--name-only").splitlines()
    runs = [name for run in ("plain", "blurred", "mean-seed-0") for name in stages_of(run, "knn")]
    assert set(listed) == {*STAGES_OF_ALL_RUNS, *runs, *CHOSEN_STAGES}
    assert project.repro("evaluate") == stages_of("mean-seed-0", "knn")
    write_suite(project, [0, 1])
    assert project.repro() == [*stages_of("mean-seed-1", "knn"), "report"]
    check_params(project.folder)
    encoders = [f"artifacts/pretrain/mean-seed-{s}/encoder.safetensors" for s in (0, 1)]
    first, second = ((project.folder / file).read_bytes() for file in encoders)
    assert first != second
    text = (project.folder / "artifacts/report/results.txt").read_text()
    assert "Chin et al. 2024, Table 8: hard negatives" in text and "(n 2)" in text


def test_deleted_outputs_are_rebuilt_byte_for_byte(project: Project) -> None:
    """Without transfer and detection, which tests of these stages repeat."""
    artifacts = project.folder / "artifacts"
    before = {name: tree_digest(artifacts / name) for name in REBUILT}
    project.write_params(
        without_choices(FINISHED) | {"runs": {"blurred": FINISHED["runs"]["blurred"]}}
    )
    for name in ("artifacts", ".dvc/cache", "runs"):
        shutil.rmtree(project.folder / name)
    project.repro("--no-run-cache", "evaluate")
    assert {name: tree_digest(artifacts / name) for name in REBUILT} == before


def test_another_choice_of_evaluations_runs_only_the_new_ones(project: Project) -> None:
    params = copy.deepcopy(FINISHED)
    params["evaluate"]["chosen"]["linear"] = ["plain", "blurred"]
    params["transfer"]["shapes"]["first"] = 2000
    project.write_params(params)
    assert sorted(project.repro("evaluate", "linear", "transfer")) == [
        "linear@blurred", "transfer@plain-shapes", "transfer_data@shapes"
    ]  # fmt: skip


def test_user_errors_end_with_a_message_and_code_2(project: Project) -> None:
    project.write_params(with_runs(blurred={"mask": {"name": "blur", "rato": 0.1}}))
    output = project.stage("pretrain", "--run", "blurred", code=2)
    assert "rato: no such key" in output and "Traceback" not in output
    assert "runs.nobody" in project.stage("pretrain", "--run", "nobody", code=2)


# ------------------------------------------------------------------------------ another project


def test_a_folder_without_labels_reaches_the_report(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(40):
        Image.effect_noise((48, 40), 60 + index).convert("RGB").save(photos / f"{index}.jpg")
    (photos / "broken.jpg").write_bytes(b"not an image")
    params = copy.deepcopy(TINY) | {"data": {"name": "imagefolder", "root": str(photos)}}
    params["runs"] = {"blurred": {"mask": {"name": "blur"}}}
    params["evaluate"]["protocols"] = ["knn"]
    project = Project(tmp_path / "project", params)
    project.repro()
    assert "broken.jpg" in (project.folder / "artifacts/data/rejected.csv").read_text()
    assert read_results(project.folder)["blurred"]["metrics"] == {}
    assert (project.folder / "artifacts/pretrain/blurred/encoder.safetensors").is_file()
