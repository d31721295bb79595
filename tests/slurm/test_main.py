"""`python -m slurm`: which runs it shows and finds, without a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from slurm.__main__ import main
from slurm.folder import locked

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two unfinished runs that ran without jobs."""
    monkeypatch.setenv("SALMASK_RUNS", str(tmp_path))
    for name in ("pretrain-blur-000000000001", "pretrain-mean-000000000002"):
        (tmp_path / name / "work").mkdir(parents=True)
        (tmp_path / name / "job.json").write_text(json.dumps({"host": "here"}))
    (tmp_path / "pretrain-blur-000000000001" / "work" / "step-000000012.pt").touch()
    return tmp_path


def test_status_shows_one_row_for_each_run(runs):
    lines = CliRunner().invoke(main, ["status"]).output.splitlines()
    assert [line.split() for line in lines] == [
        ["run", "state", "job", "where", "checkpoint"],
        ["pretrain-blur-000000000001", "stopped", "here", "step-000000012"],
        ["pretrain-mean-000000000002", "stopped", "here"],
    ]


def test_status_names_runs_that_have_collapsed(runs):
    out = runs / "pretrain-mean-000000000002" / "out"
    out.mkdir()
    (out / "probe.csv").write_text("epoch,step,images,rankme,spread\n5,100,50,1,0.5\n")
    damaged = runs / "pretrain-blur-000000000001" / "out"
    damaged.mkdir()
    (damaged / "probe.csv").write_text("epoch,step\n5\n")
    other = runs / "finetune-mean-000000000003"  # its history has other columns
    (other / "out").mkdir(parents=True)
    (other / "job.json").write_text("{}")
    (other / "out" / "history.csv").write_text("training,epoch,lr,loss\n10%,1,0.1,2\n")
    *_, error, last = CliRunner().invoke(main, ["status"]).output.splitlines()
    assert error.startswith("error: pretrain-blur-000000000001: ") and "is damaged" in error
    assert last.startswith("warning: pretrain-mean-000000000002: the embeddings have collapsed")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["logs", "blur"], "has no job"),
        (["logs", "pretrain"], "several runs match pretrain: pretrain-blur-"),
        (["logs", "nothing"], "no run matches nothing: pretrain-blur-"),
        (["cancel"], "give either the name of a run or --all"),
    ],
)
def test_user_errors_exit_with_code_2(runs, command, message):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and message in result.output


def test_a_folder_without_runs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SALMASK_RUNS", str(tmp_path))
    assert f"no runs in {tmp_path}" in CliRunner().invoke(main, ["status"]).output


def test_launchers_and_commands_import_neither_torch_nor_submitit():
    modules = "slurm.__main__, slurm.launch, slurm.doctor"
    code = f"import sys, {modules}; print({{'torch', 'submitit'}} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert output == "set()\n"


def test_status_shows_which_local_runs_work_and_why_others_failed(runs):
    (runs / "pretrain-mean-000000000002" / "failure.txt").write_text("the loss is not finite\n")
    with locked(runs / "pretrain-blur-000000000001"):
        output = CliRunner().invoke(main, ["status"]).output
    assert [line.split()[1] for line in output.splitlines()[1:3]] == ["running", "failed"]
    assert "error: pretrain-mean-000000000002: the loss is not finite" in output
