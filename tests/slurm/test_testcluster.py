"""The throw-away cluster: that it is one, and that nothing is left of it."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster.sh"
UNTIL_KILLED = "trap '' TERM; while :; do sleep 1; done"


def processes_with(*texts: str) -> list[str]:
    """Command lines of what runs with all the texts in its command or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes()
            if all(text.encode() in told for text in texts):
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended
    return found


def test_it_comes_up_once_and_leaves_nothing(own_cluster):
    with own_cluster() as cluster:
        assert cluster.run("sinfo", "-h", "-N", "-p", "test", "-o", "%N %t %c %m").split("\n") == [
            "n1 idle 4 16000",
            "n2 idle 4 16000",
        ]
        nodes = cluster.run("srun", "-N2", "-n2", "bash", "-c", "echo $SLURMD_NODENAME")
        assert sorted(nodes.split()) == ["n1", "n2"]

        again = cluster.script("up")
        assert again.stdout == f"export SLURM_CONF={cluster.conf}\n"
        assert "runs already" in again.stderr
        assert cluster.script("status").returncode == 0

        # One that forgot its environment, one that left its parent, one that ignores SIGTERM.
        mark = str(cluster.conf.parent)
        nameless = f"env -i setsid bash -c ': {mark}; sleep 301; true'"
        orphan = f"setsid bash -c ': {mark}; sleep 302; true'"
        cluster.submit(f"{nameless} & ({orphan} &) ; {UNTIL_KILLED}", "-N2")
        end = time.monotonic() + 20
        while (
            sum("sleep 30" in line for line in processes_with(mark)) < 3
        ):  # sleep 302 has the mark
            assert time.monotonic() < end
            time.sleep(0.1)
        waiting = subprocess.Popen(["srun", "--exclusive", "-N2", "true"], env=cluster.env)
        assert cluster.script("down").returncode == 0
        assert waiting.wait(10) != 0
        assert not cluster.conf.parent.exists()
        assert processes_with(mark) == []
        assert cluster.script("status").returncode == 1
        assert cluster.script("down").returncode == 0


def test_a_requeued_job_runs_again_within_half_a_minute(cluster):
    job = cluster.submit("sleep 300", "--requeue")
    try:
        cluster.wait(job, "RUNNING")
        cluster.run("scontrol", "requeue", job)
        cluster.wait(job, "PENDING")
        assert cluster.wait(job, "RUNNING", seconds=40)["Restarts"] == "1"
    finally:
        cluster.run("scancel", job)
    assert cluster.wait(job, "CANCELLED")["ExitCode"] in ("0:15", "143:0")  # who hears of it first


def test_without_accounting_sacct_says_so(cluster):
    if "AccountingStorageType=accounting_storage/slurmdbd" in cluster.conf.read_text().split("\n"):
        pytest.skip("the named cluster has accounting")
    said = subprocess.run(["sacct"], env=cluster.env, text=True, capture_output=True)
    assert (said.returncode, said.stderr) == (1, "Slurm accounting storage is disabled\n")


def test_with_accounting_sacct_knows_how_a_job_ended(own_cluster):
    with own_cluster("--accounting") as cluster:
        job = cluster.submit("exit 3")
        assert cluster.wait(job, "FAILED")["ExitCode"] == "3:0"
        asked = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
        end = time.monotonic() + 30  # the database hears of it later than the controller
        while (said := cluster.run(*asked)) != "FAILED|3:0":
            assert time.monotonic() < end, said
            time.sleep(0.2)


def test_a_node_can_fail_and_return(own_cluster):
    with own_cluster() as cluster:
        job = cluster.submit(UNTIL_KILLED, "-w", "n2", "--no-requeue")
        cluster.wait(job, "RUNNING")
        assert cluster.script("node-down", "n2", "--keep-jobs").returncode == 0
        here = ("SLURMD_NODENAME=n2", f"SLURM_CONF={cluster.conf}")
        assert any("slurm_script" in line for line in processes_with(*here))
        assert cluster.script("node-down", "n2").returncode == 0
        assert processes_with(*here) == []
        assert "n2: dead" in cluster.script("status").stdout
        # The controller would take minutes to notice.
        cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        assert cluster.wait(job, "NODE_FAIL")["ExitCode"] == "0:0"
        assert cluster.script("node-up", "n2").returncode == 0
        assert cluster.run("srun", "-w", "n2", "bash", "-c", "echo $SLURMD_NODENAME") == "n2"


def test_missing_packages_are_named(tmp_path):
    for command in ("bash", "cut", "dirname", "realpath", "uname"):
        (tmp_path / command).symlink_to(shutil.which(command) or "")
    said = subprocess.run(
        [SCRIPT, "up", "--dir", tmp_path / "c"],
        env={"PATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert said.returncode == 2
    assert "apt-get install" in said.stderr
    assert "slurm-wlm" in said.stderr


def test_a_folder_of_somebody_else_stays(tmp_path):
    (tmp_path / "precious").touch()
    said = subprocess.run([SCRIPT, "down", "--dir", tmp_path], text=True, capture_output=True)
    assert said.returncode == 2
    assert "stays as it is" in said.stderr
    assert (tmp_path / "precious").exists()
