"""An import under DVC: from a foreign checkpoint to its row in the report, and no pretraining."""

import copy
import json

import pytest
import torch

from salmask.params.encoder import EncoderConfig
from salmask.provenance import file_digest
from tests.helpers.project import TINY, Project
from tests.helpers.tiny_encoders import lively

pytestmark = pytest.mark.pipeline

CONFIG = EncoderConfig("resnet18", width=4)


def checkpoint(project: Project, seed: int) -> str:
    """A checkpoint in MoCo's layout; its sha256."""
    query = {f"module.encoder_q.{k}": v for k, v in lively(CONFIG, seed).state_dict().items()}
    torch.save({"epoch": 1, "state_dict": query}, project.folder / "moco.pth.tar")
    return file_digest(project.folder / "moco.pth.tar")


def test_a_foreign_checkpoint_is_scored_without_saliency_and_followed_to_its_file(tmp_path):
    params = copy.deepcopy(TINY) | {"runs": {}}
    params["data"]["images"] = {"train": 24, "val": 8, "decorrelated": 8}
    params["evaluate"]["protocols"] = ["knn"]
    params["imports"] = {"theirs": {"path": "moco.pth.tar", "arch": "resnet18", "width": 4,
                                    "size": 32}}  # fmt: skip
    project = Project(tmp_path, params)
    digest = checkpoint(project, seed=0)
    ran = project.repro("imported", "evaluate-imported")
    assert sorted(ran) == ["evaluate-imported@theirs-knn", "imported@theirs", "prepare"]
    assert not (tmp_path / "artifacts/saliency").exists()
    made = tmp_path / "artifacts/pretrain/theirs"
    assert sorted(p.name for p in made.iterdir()) == [
        "encoder.json", "encoder.safetensors", "provenance.json"
    ]  # fmt: skip
    assert json.loads((made / "provenance.json").read_text())["inputs"] == {"moco.pth.tar": digest}

    project.stage("report")
    (row,) = json.loads((tmp_path / "artifacts/report/results.json").read_text())["rows"]
    assert {"knn5_top1", "random_knn5_top1"} <= set(row["metrics"])
    page = (tmp_path / "artifacts/report/index.html").read_text()
    for told in ("0 pretraining runs", "1 imported encoder", digest[:12], "<code>moco</code>"):
        assert told in page
    assert "Training curves" not in page
    metrics = "artifacts/evaluate/theirs/knn/metrics.json"
    told = project.salmask("lineage", metrics)
    assert "everything matches" in told and "moco.pth.tar" in told

    assert checkpoint(project, seed=1) != digest
    told = project.salmask("lineage", metrics, code=1)
    assert "its input moco.pth.tar has changed since" in told
    assert "moco.pth.tar" in project.run("dvc", "status", "imported")
