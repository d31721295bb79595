"""An imported encoder on the page: next to the runs, without curve and mask."""

from pathlib import Path

import pytest
import yaml

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import InputSpec
from salmask.files import write_json
from salmask.provenance import recipe, record
from tests.helpers.tiny_encoders import SMALL, random_network
from tests.helpers.tiny_report import CPU, KNN, evaluated, make_project, params, run_stage

SOURCE = {"sha256": "5eed" * 16, "layout": "simsiam", "dropped": ["fc"]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path)
    chosen = params() | {"imports": {"theirs": {"path": "x.pth", "arch": "resnet10"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    folder = tmp_path / "artifacts/pretrain/theirs"
    weights = random_network(SMALL).state_dict()
    encoder_file.save(weights, SMALL, InputSpec(16, 18, None), folder, SOURCE)
    made = recipe("imported", "theirs", [], {}, [], tmp_path)
    write_json(folder / "provenance.json", record(made, folder, CPU))
    evaluated(tmp_path, "theirs", "knn", KNN | {"knn20_top1": 63.21})
    evaluated(tmp_path, "theirs", "linear_fast", {"linear_fast_top1": 64.0})
    return tmp_path


def test_it_is_listed_with_the_runs_and_described_as_imported(project, monkeypatch):
    html, output = run_stage(project, monkeypatch)
    assert "2 pretraining runs (MoCo v2) and 1 imported encoder on" in " ".join(html.split())
    assert '<th scope="row">theirs</th>' in html and "63.21" in html and "theirs" in output
    for message in ("<b>theirs</b> was trained elsewhere", "<code>simsiam</code>", "5eed5eed5eed"):
        assert message in html
    assert "salmask lineage artifacts/evaluate/theirs/knn/metrics.json" in html
    # it has the best score, so its neighbours are shown
    assert "features of\n<b>theirs</b>" in html


def test_without_imports_the_page_does_not_mention_them(project, monkeypatch):
    (project / "params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
    html, _ = run_stage(project, monkeypatch)
    assert "imported" not in html and "theirs" not in html
    assert "2 pretraining runs (MoCo v2) on" in " ".join(html.split())
