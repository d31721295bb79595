"""slurm/testcluster.sh: the cluster works, and nothing of it remains."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.workspace import wait_until

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster.sh"
UNTIL_KILLED = "trap '' TERM; while :; do sleep 1; done"


def processes_with(*texts: str) -> list[str]:
    """The command lines of processes with all the texts in their command or environment."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            content = command + (process / "environ").read_bytes()
            if all(text.encode() in content for text in texts):
                commands.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue  # the process has ended
    return commands


def test_the_cluster_starts_once_and_leaves_nothing(own_cluster):
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

        # A process without environment, one without its parent, and one that ignores SIGTERM.
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


def test_without_accounting_sacct_says_so(cluster):
    if "AccountingStorageType=accounting_storage/slurmdbd" in cluster.conf.read_text().split("\n"):
        pytest.skip("the named cluster has accounting")
    output = subprocess.run(["sacct"], env=cluster.env, text=True, capture_output=True)
    assert (output.returncode, output.stderr) == (1, "Slurm accounting storage is disabled\n")


def test_with_accounting_sacct_shows_how_a_job_ended(accounting):
    job = accounting.submit("exit 3")
    assert accounting.wait(job, "FAILED")["ExitCode"] == "3:0"
    command = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
    end = time.monotonic() + 30  # the database is updated later
    while (output := accounting.run(*command)) != "FAILED|3:0":
        assert time.monotonic() < end, output
        time.sleep(0.2)


def test_a_node_can_fail_and_return(own_cluster):
    with own_cluster() as cluster:
        job = cluster.submit(UNTIL_KILLED, "-w", "n2", "--no-requeue")
        on_n2 = ("SLURMD_NODENAME=n2", f"SLURM_CONF={cluster.conf}")

        def has_job() -> bool:
            return any("slurm_script" in line for line in processes_with(*on_n2))

        wait_until(has_job)  # a job is RUNNING before its first process exists
        assert cluster.script("node-down", "n2", "--keep-jobs").returncode == 0
        assert has_job()
        assert cluster.script("node-down", "n2").returncode == 0
        assert processes_with(*on_n2) == []
        assert "n2: dead" in cluster.script("status").stdout
        # The controller would need minutes to notice.
        cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        assert cluster.wait(job, "NODE_FAIL")["ExitCode"] == "0:0"
        assert cluster.script("node-up", "n2").returncode == 0
        assert cluster.run("srun", "-w", "n2", "bash", "-c", "echo $SLURMD_NODENAME") == "n2"


def test_missing_packages_are_named(tmp_path):
    for command in ("bash", "cut", "dirname", "realpath", "uname"):
        (tmp_path / command).symlink_to(shutil.which(command) or "")
    output = subprocess.run(
        [SCRIPT, "up", "--dir", tmp_path / "c"],
        env={"PATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert output.returncode == 2
    assert "apt-get install" in output.stderr
    assert "slurm-wlm" in output.stderr


def test_down_removes_no_other_folder(tmp_path):
    (tmp_path / "precious").touch()
    output = subprocess.run([SCRIPT, "down", "--dir", tmp_path], text=True, capture_output=True)
    assert output.returncode == 2
    assert "stays as it is" in output.stderr
    assert (tmp_path / "precious").exists()
