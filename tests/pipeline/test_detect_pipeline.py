"""Detection under DVC: from annotated images and an imported encoder to the report."""

import copy
import csv
import json

import pytest

from tests.helpers.project import TINY, Project
from tests.pipeline.test_imports_pipeline import checkpoint
from tests.pipeline.test_repro import check_params

pytestmark = pytest.mark.pipeline

SCENES = {
    "name": "demo", "root": "artifacts/code/demo.sha256", "side": 48,
    "images": {"train": 6, "test": 3}, "recipe": "coco_1x", "iterations": 3, "milestones": [2],
    "batch": 2, "lr": 0.01, "warmup": 1, "short_sides": [48], "test_short_side": 48,
    "anchors": [16, 32], "regions": 8, "pictures": 2, "precise_norm": 2,
}  # fmt: skip


def test_an_imported_encoder_is_scored_with_lineage_to_the_images(tmp_path):
    params = copy.deepcopy(TINY) | {"runs": {}, "detect": {"scenes": SCENES}}
    params["data"]["images"] = {"train": 24, "val": 8, "decorrelated": 8}
    params["evaluate"] |= {"protocols": [], "chosen": TINY["evaluate"]["chosen"] | {
        "detect": ["theirs"]
    }}  # fmt: skip
    params["imports"] = {"theirs": {"path": "moco.pth.tar", "arch": "resnet18", "width": 4,
                                    "size": 32}}  # fmt: skip
    project = Project(tmp_path, params)
    checkpoint(project, seed=0)
    ran = project.repro("detect", "prepare")
    assert sorted(ran) == [
        "detect@theirs-scenes", "detect_data@scenes", "imported@theirs", "prepare"
    ]  # fmt: skip
    out = tmp_path / "artifacts/evaluate/theirs/detect-scenes"
    assert sorted(p.name for p in out.iterdir()) == [
        "classes.csv", "detections.png", "metrics.json", "provenance.json"
    ]  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    names = {f"detect_scenes_{kind}_{ap}" for kind in ("box", "mask") for ap in ("ap", "ap50")}
    assert names <= set(metrics) and all(0 <= value <= 100 for value in metrics.values())
    with (out / "classes.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 20
    inputs = json.loads((out / "provenance.json").read_text())["inputs"]
    assert {"artifacts/detect/scenes/pictures.jsonl"} < set(inputs)
    assert project.repro("detect") == []
    check_params(project)

    project.stage("report")
    (row,) = json.loads((tmp_path / "artifacts/report/results.json").read_text())["rows"]
    assert names <= set(row["metrics"])
    page = (tmp_path / "artifacts/report/index.html").read_text()
    assert "Detection: scenes, theirs" in page and "Masks of each class" in page
    assert "detect_scenes_box_ap50" in (tmp_path / "artifacts/report/results.txt").read_text()
    metrics_file = "artifacts/evaluate/theirs/detect-scenes/metrics.json"
    lineage = project.run("salmask", "lineage", metrics_file)
    assert "everything matches" in lineage and "detect_data scenes" in lineage
