"""`salmask results` on a tiny made-up project: marks where numbers no longer match."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from salmask.commands.cli import main
from tests.helpers.tiny_report import make_project, run_stage


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        run_stage(project, patch)
    return project


@pytest.fixture
def project(reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(reported, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def printed() -> str:
    result = CliRunner().invoke(main, ["results"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_unchanged_results_are_printed_as_the_report_wrote_them(project: Path) -> None:
    text = (project / "artifacts/report/results.txt").read_text(encoding="utf-8")
    assert printed() == f"{text}\nreport: {project}/artifacts/report/index.html\n"


def test_tables_with_damaged_bytes_are_printed(project: Path) -> None:
    file = project / "artifacts/report/results.txt"
    file.write_bytes(b"\xff" + file.read_bytes())
    assert printed().startswith("\N{REPLACEMENT CHARACTER}")


def test_an_edited_metric_marks_its_run_only(project: Path) -> None:
    file = project / "artifacts/evaluate/masked/knn/metrics.json"
    file.write_text(file.read_text().replace("50.0", "55.0"))
    output = printed()
    assert "\n !masked " in output and "\n  plain " in output
    assert (
        "! masked: artifacts/evaluate/masked/knn/metrics.json: metrics.json has changed" in output
    )
    assert "! masked: the report is older than its metrics: run `dvc repro report`" in output
    assert "! plain" not in output


def test_a_metric_that_changed_with_its_record_is_marked(project: Path) -> None:
    folder = project / "artifacts/evaluate/plain/knn"
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | {"params": {"seed": 7}}))
    output = printed()
    assert "\n !plain " in output and "its fingerprint is that of other content" in output


def test_a_changed_input_marks_every_run_in_one_line(project: Path) -> None:
    file = project / "artifacts/data/manifest.csv"
    file.write_text(file.read_text() + "\n")
    assert "! plain, masked: artifacts/data: manifest.csv has changed" in printed()


def test_damaged_and_lost_metrics_are_marked(project: Path) -> None:
    (project / "artifacts/evaluate/plain/knn/metrics.json").write_text("{")
    shutil.rmtree(project / "artifacts/evaluate/masked/knn")
    output = printed()
    assert "! plain: artifacts/evaluate/plain/knn/metrics.json is damaged" in output
    assert "! plain, masked: the report is older" in output
