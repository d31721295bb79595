"""An imported encoder under DVC: from the checkpoint to its row in the report."""

import copy
import csv
import json
import shutil

import pytest
import torch

from salmask.files import file_digest
from salmask.params.encoder import EncoderConfig
from tests.helpers.project import TINY, Project
from tests.helpers.tiny_encoders import random_network
from tests.pipeline.conftest import FINISHED

pytestmark = pytest.mark.pipeline

CONFIG = EncoderConfig("resnet18", width=8)
PARAMS = copy.deepcopy(FINISHED) | {
    "runs": {},
    "transfer": {},
    "imports": {"theirs": {"path": "moco.pth.tar", "arch": "resnet18", "width": 8, "size": 32}},
}
PARAMS["evaluate"] |= {
    "protocols": ["knn"],
    "chosen": TINY["evaluate"]["chosen"] | {"detect": ["theirs"]},
}


def write_checkpoint(project: Project, seed: int, prefix: str = "module.encoder_q.") -> str:
    """Writes a checkpoint, by default in MoCo's layout. Returns its sha256."""
    query = {f"{prefix}{k}": v for k, v in random_network(CONFIG, seed).state_dict().items()}
    torch.save({"epoch": 1, "state_dict": query}, project.folder / "moco.pth.tar")
    return file_digest(project.folder / "moco.pth.tar")


def test_an_imported_checkpoint_is_scored_with_lineage_to_its_file(project: Project) -> None:
    artifacts = project.folder / "artifacts"
    project.write_params(PARAMS)
    digest = write_checkpoint(project, seed=0)
    shutil.rmtree(artifacts / "saliency")  # nothing below may need it
    ran = project.repro("imported", "evaluate-imported", "detect")
    assert sorted(ran) == [
        "detect@theirs-scenes", "evaluate-imported@theirs-knn", "imported@theirs"
    ]  # fmt: skip
    assert not (artifacts / "saliency").exists()
    out = artifacts / "pretrain/theirs"
    assert sorted(p.name for p in out.iterdir()) == [
        "encoder.json", "encoder.safetensors", "provenance.json"
    ]  # fmt: skip
    assert json.loads((out / "provenance.json").read_text())["inputs"] == {"moco.pth.tar": digest}
    detected = artifacts / "evaluate/theirs/detect-scenes"
    assert sorted(p.name for p in detected.iterdir()) == [
        "classes.csv", "detections.png", "metrics.json", "provenance.json"
    ]  # fmt: skip
    with (detected / "classes.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 20
    inputs = json.loads((detected / "provenance.json").read_text())["inputs"]
    assert "artifacts/detect/scenes/pictures.jsonl" in inputs

    project.stage("report")
    (row,) = json.loads((artifacts / "report/results.json").read_text())["rows"]
    metrics = {"knn5_top1", "random_knn5_top1", "detect_scenes_box_ap", "detect_scenes_mask_ap50"}
    assert metrics <= set(row["metrics"])
    page = (artifacts / "report/index.html").read_text()
    texts = ("0 pretraining runs", "1 imported encoder", digest[:12], "<code>moco</code>")
    for text in (*texts, "Detection: scenes, theirs"):
        assert text in page
    assert "Training curves" not in page
    path = "artifacts/evaluate/theirs/knn/metrics.json"
    lineage = project.salmask("lineage", path)
    assert "everything matches" in lineage and "moco.pth.tar" in lineage

    assert write_checkpoint(project, seed=1) != digest
    lineage = project.salmask("lineage", path, code=1)
    assert "its input moco.pth.tar has changed since" in lineage
    assert "moco.pth.tar" in project.run("dvc", "status", "imported")
