"""The pipeline end to end under DVC, on a tiny demo: what runs and what it leaves."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from salmask.provenance import tree_digest
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.pipeline

EVERY_STAGE = [
    "prepare", "localizer", "saliency", "pretrain@plain", "pretrain@blurred",
    "evaluate@plain-knn", "evaluate@plain-linear_fast", "evaluate@blurred-knn",
    "evaluate@blurred-linear_fast", "report",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project for the module: its tests go on from one another, in the order of this file."""
    made = Project(tmp_path_factory.mktemp("project"), TINY)
    assert sorted(made.repro()) == sorted(EVERY_STAGE)
    return made


def changed(**overrides: Any) -> dict[str, Any]:
    params = copy.deepcopy(TINY)
    params["runs"] |= overrides
    return params


def test_results_name_every_run_with_its_lineage(project: Project) -> None:
    results = json.loads((project.folder / "artifacts/report/results.json").read_text())
    rows = {row["run"]: row for row in results["rows"]}
    assert list(rows) == ["plain", "blurred"]
    for row in rows.values():
        assert row["dataset"] == "demo"
        assert {"knn5_top1", "decorrelated_knn5_top1", "linear_fast_top1"} <= set(row["metrics"])
        assert all(0 <= value <= 100 for value in row["metrics"].values())
        assert "pretrain" in row["lineage"] and "saliency" in row["lineage"]


def test_the_page_needs_no_network(project: Project) -> None:
    page = (project.folder / "artifacts/report/index.html").read_text()
    assert "data:image/png;base64," in page
    for attribute in ('src="http', 'href="http', "url(http", "@import"):
        assert attribute not in page


def test_a_second_repro_runs_nothing_and_status_is_clean(project: Project) -> None:
    assert project.repro() == []
    changed = [line for line in project.run("dvc", "status").splitlines() if line.endswith(":")]
    assert changed == ["code:"]  # which always runs


def test_every_stage_reads_exactly_the_params_it_declares(project: Project) -> None:
    check_params(project)


def check_params(project: Project) -> None:
    declared = yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]
    for where in project.folder.glob("artifacts/**/provenance.json"):
        made = json.loads(where.read_text())
        stage, of = made["stage"], made["name"]
        names = [stage, f"{stage}@{of}", f"{stage}-through@{of}", f"evaluate@{of}-{stage}"]
        (name,) = [name for name in names if name in declared]
        said = set(declared[name].get("params", {}).get("params.yaml", {}))
        read = set(made["params"])
        uncovered = {key for key in read if not covered(key, said)}
        assert not uncovered, f"{name} reads {uncovered} which dvc.yaml does not declare"
        unused = {key for key in said if not covered(key, read) and not covers_one(key, read)}
        assert not unused, f"{name} declares {unused} which it never reads"


def covered(key: str, by: set[str]) -> bool:
    return any(key == other or key.startswith(other + ".") for other in by)


def covers_one(key: str, others: set[str]) -> bool:
    return any(other.startswith(key + ".") for other in others)


def test_lineage_is_sound_and_notices_a_changed_byte(project: Project) -> None:
    metrics = "artifacts/evaluate/blurred/knn/metrics.json"
    told = project.run("salmask", "lineage", metrics, "--images")
    assert "everything matches" in told
    for part in ("pretrain blurred", "saliency", "localizer", "prepare", "160 of 160 images"):
        assert part in told
    history = project.folder / "artifacts/pretrain/blurred/history.csv"
    before = history.read_bytes()
    history.write_bytes(before.replace(b"1", b"2", 1))
    told = project.run("salmask", "lineage", metrics, code=1)
    assert "history.csv has changed since it was made" in told
    history.write_bytes(before)


def test_a_comment_reruns_only_code(project: Project) -> None:
    for name in ("salmask/losses.py", "salmask/datasets/demo_images.py", "stages/prepare.py"):
        path = project.folder / name
        path.write_text(path.read_text() + "\n# a remark\n")
    assert project.repro() == []


def test_new_code_that_makes_the_same_files_stops_there(project: Project) -> None:
    path = project.folder / "salmask/datasets/reader.py"
    path.write_text(path.read_text() + "\nUNUSED = 1\n")
    assert project.repro() == ["prepare", "report"]


def test_changed_code_reruns_the_stages_that_use_it(project: Project) -> None:
    path = project.folder / "salmask/evaluate/linear_fast.py"
    path.write_text(path.read_text() + "\nUNUSED = 1\n")
    assert project.repro() == [
        "evaluate@plain-linear_fast", "evaluate@blurred-linear_fast", "report"
    ]  # fmt: skip


def test_one_runs_mask_ratio_reruns_its_chain_only(project: Project) -> None:
    project.write_params(changed(blurred={"mask": {"name": "blur", "ratio": [0.1, 0.2]}}))
    assert project.repro() == [
        "pretrain@blurred", "evaluate@blurred-knn", "evaluate@blurred-linear_fast", "report"
    ]  # fmt: skip
    project.write_params(TINY)


def stages_of(run: str) -> list[str]:
    return [f"pretrain@{run}", f"evaluate@{run}-knn", f"evaluate@{run}-linear_fast", "report"]


def put_suite(project: Project, seeds: list[int]) -> None:
    """TINY with one more run, repeated over seeds, as a suite in params.yaml's place."""
    entry = {"mask": {"name": "mean"}, "seed": seeds}
    table = {"columns": {"Top-1": "knn5_top1"}, "rows": {"mean fill, positive mask": "mean"}}
    suite = changed(mean=entry) | {"tables": {"chin 8": table}}
    (project.folder / "suites/mine.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    (project.folder / "params.yaml").unlink()  # nothing to lose
    assert f"({2 + len(seeds)} runs)" in project.run("salmask", "suite", "mine")


def test_adding_a_run_by_a_suite_runs_only_it(project: Project) -> None:
    project.repro()
    put_suite(project, [0])
    listed = project.run("dvc", "stage", "list", "--name-only").splitlines()
    assert {"code", *EVERY_STAGE, *stages_of("mean-seed-0")} == set(listed)
    assert project.repro() == stages_of("mean-seed-0")
    check_params(project)


def test_another_seed_runs_only_that_seeds(project: Project) -> None:
    put_suite(project, [0, 1])
    assert project.repro() == stages_of("mean-seed-1")
    encoders = [f"artifacts/pretrain/mean-seed-{s}/encoder.safetensors" for s in (0, 1)]
    first, second = ((project.folder / file).read_bytes() for file in encoders)
    assert first != second
    said = (project.folder / "artifacts/report/results.txt").read_text()
    assert "Chin et al. 2024, Table 8: hard negatives" in said and "(n 2)" in said
    project.write_params(TINY)
    assert project.repro() == ["report"]
    results = json.loads((project.folder / "artifacts/report/results.json").read_text())
    assert [row["run"] for row in results["rows"]] == ["plain", "blurred"]


def test_deleted_outputs_come_back_byte_for_byte(project: Project) -> None:
    before = {name: tree_digest(project.folder / "artifacts" / name) for name in LEFT}
    for name in ("artifacts", ".dvc/cache", "runs"):
        shutil.rmtree(project.folder / name)
    project.repro("--no-run-cache")
    assert {name: tree_digest(project.folder / "artifacts" / name) for name in LEFT} == before


LEFT = [
    "data", "localizer", "saliency", "pretrain/plain", "pretrain/blurred",
    "evaluate/plain", "evaluate/blurred", "report",
]  # fmt: skip


def test_evaluations_run_for_the_runs_that_are_chosen(project: Project) -> None:
    params = copy.deepcopy(TINY)
    shapes = {"images": {"train": 40, "val": 20}, "first": 1000}
    params["transfer"] = {"shapes": TINY["data"] | shapes}
    params["evaluate"]["chosen"] = {
        "linear": ["plain"], "finetune": ["plain"], "transfer": ["plain"], "detect": [],
        "variance": ["blurred"], "variance_through": ["plain"],
    }  # fmt: skip
    project.write_params(params)
    assert sorted(project.repro()) == [
        "finetune@plain", "linear@plain", "report", "transfer@plain-shapes",
        "transfer_data@shapes", "variance-through@blurred-plain", "variance@blurred",
    ]  # fmt: skip
    check_params(project)
    results = json.loads((project.folder / "artifacts/report/results.json").read_text())
    plain, blurred = (row["metrics"] for row in results["rows"])
    for protocol in ("linear_top1", "finetune10_top1", "finetune10_top5"):
        assert {protocol, f"decorrelated_{protocol}"} <= plain.keys() - blurred.keys()
    assert {"transfer_shapes_top1", "transfer_shapes_mean_per_class"} <= plain.keys()
    assert {"variance_pooled", "decorrelated_variance_uniformity"} <= blurred.keys() - plain.keys()
    assert {"variance_projected_unit", "variance_through_plain_projected"} <= blurred.keys()
    assert (project.folder / "artifacts/evaluate/plain/linear/history.csv").is_file()
    assert "linear_top1" in (project.folder / "artifacts/report/results.txt").read_text()
    chosen = "plain/linear", "plain/transfer-shapes", "blurred/variance", "blurred/variance-plain"
    for made in chosen:
        metrics = f"artifacts/evaluate/{made}/metrics.json"
        assert "everything matches" in project.run("salmask", "lineage", metrics), made
    params["transfer"]["shapes"]["first"] = 2000
    project.write_params(params)
    assert project.repro() == ["transfer_data@shapes", "transfer@plain-shapes", "report"]
    project.write_params(TINY)


def test_mistakes_end_with_a_message_and_code_2(project: Project) -> None:
    params = changed(blurred={"mask": {"name": "blur", "rato": 0.1}})
    project.write_params(params)
    told = project.stage("pretrain", "--run", "blurred", code=2)
    assert "rato: no such key" in told and "Traceback" not in told
    assert "runs.nobody" in project.stage("pretrain", "--run", "nobody", code=2)
    project.write_params(TINY)


def test_a_folder_without_labels_reaches_the_report(tmp_path: Path) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(40):
        Image.effect_noise((48, 40), 60 + index).convert("RGB").save(photos / f"{index}.jpg")
    (photos / "broken.jpg").write_bytes(b"not an image")
    params = copy.deepcopy(TINY) | {"data": {"name": "imagefolder", "root": str(photos)}}
    params["runs"] = {"blurred": {"mask": {"name": "blur"}}}
    project = Project(tmp_path / "project", params)
    project.repro()
    assert "broken.jpg" in (project.folder / "artifacts/data/rejected.csv").read_text()
    results = json.loads((project.folder / "artifacts/report/results.json").read_text())
    assert results["rows"][0]["metrics"] == {}
    assert (project.folder / "artifacts/pretrain/blurred/encoder.safetensors").is_file()
