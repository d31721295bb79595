"""Work that an array of jobs shares: every piece once, on all nodes, and put together once."""

import os
import re
import signal

import pytest

from tests.helpers.desk import Desk, finished, until
from tests.helpers.toy import PIECES

pytestmark = pytest.mark.slurm


@pytest.fixture
def desk(tmp_path, cluster):
    made = Desk(tmp_path, str(cluster.conf))
    made.profile(nodes=2, tasks_per_node=2)
    return made


def pieces(desk: Desk, name: str) -> list[str]:
    return (desk.folder / "published" / name / "pieces.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cluster):
    """Desks at which an array ran, and what its launcher said: all at the same time."""
    started = {}
    for name, code, tasks, options in (
        ("shared", 0, 2, []),
        ("broken", 1, 1, ["--trouble", "share raises"]),
        ("late", 0, 1, ["--trouble", "late"]),
    ):
        desk = Desk(tmp_path_factory.mktemp(name), str(cluster.conf))
        desk.profile(nodes=2, tasks_per_node=tasks)
        started[name] = desk, desk.toy(name, "--shared", *options), code
    return {
        name: (desk, finished(process, code)) for name, (desk, process, code) in started.items()
    }


def test_an_array_shares_the_pieces_and_its_last_job_puts_them_together(ran):
    desk, said = ran["shared"]
    assert re.search(r"submitted as job \d+, 4 tasks, to test", said)
    assert re.search(r"is running on n1,n2$", said, re.MULTILINE)
    made = [line.split() for line in pieces(desk, "shared")]
    assert [(int(name[6:]), int(number)) for name, _, number, _, _ in made] == [
        (piece, piece % 4) for piece in range(PIECES)
    ]
    assert {node for *_, node in made} == {"n1", "n2"}
    for piece in range(PIECES):
        assert f"{piece % 4}: piece {piece} of {PIECES}" in said
    assert said.count("counts from 0") == 1
    assert desk.starts("shared") == [0]
    assert desk.ask("logs", "shared").count(" of 7\n") == PIECES
    assert not (desk.run("shared") / "work").exists()


def test_one_task_needs_no_array(desk):
    desk.profile(nodes=1, tasks_per_node=1)
    assert re.search(r"submitted as job \d+ to test", finished(desk.toy("alone", "--shared")))
    assert pieces(desk, "alone") == []  # the work itself does all that is missing


def test_a_share_that_fails_ends_the_array_and_the_next_one_goes_on(ran, cluster):
    desk, said = ran["broken"]
    job = desk.job("broken")
    assert re.search(rf"job {job}_1 \(toy-broken-\w+\) ended as FAILED, exit code 1", said)
    assert "    ValueError: the second share is broken" in said
    until(lambda: job not in cluster.run("squeue", "--noheader", "--format=%F").split())
    finished(desk.toy("broken", "--shared", "--trouble", "share raises"))
    assert len(pieces(desk, "broken")) == PIECES and desk.starts("broken") == [0]


def test_jobs_that_miss_each_others_end_are_followed_by_another(ran):
    desk, said = ran["late"]
    assert "all shares are done; another job puts them together" in said
    assert said.count("submitted as job") == 2
    assert len(pieces(desk, "late")) == PIECES and desk.starts("late") == [0]


def test_a_killed_launcher_attaches_to_an_array_that_was_put_back(desk, cluster):
    first = desk.toy("back", "--shared", "--ticks", "80")
    until(lambda: list(desk.folder.glob("runs/*back-*/jobs/*_1_0_log.out")))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    job = desk.job("back")
    assert re.search(rf"toy-back-\w+ +running +{job} +n1,n2", desk.ask("status"))
    second = desk.toy("back", "--shared", "--ticks", "80")
    until(lambda: (desk.run("back") / "work" / "piece-1").exists())  # it goes on with piece 5
    cluster.run("scancel", "--signal=USR2", f"{job}_1")
    after = finished(second)
    assert f"job {job} is at it already" in after
    assert "1: putting this job back into the queue" in after
    assert len(pieces(desk, "back")) == PIECES and desk.starts("back") == [0]


def test_cancel_stops_all_of_an_array(desk, cluster):
    waiting = desk.toy("stopped", "--shared", "--ticks", "300")
    until(lambda: list(desk.folder.glob("runs/*stopped-*/jobs/*_1_0_log.out")))
    desk.ask("cancel", "stopped")
    assert "ended as CANCELLED" in finished(waiting, 1)
    job = desk.job("stopped")
    until(lambda: job not in cluster.run("squeue", "--noheader", "--format=%F").split())
