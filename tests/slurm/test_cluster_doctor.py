"""What `salmask doctor` says of a cluster profile, before anything is submitted."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from salmask.commands.cli import main
from salmask.findings import Finding
from slurm import doctor, probe, scheduler
from slurm.profile import Profile
from slurm.scheduler import Status
from tests.helpers.desk import ROOT, TINY, finished

NODE = "NodeName=a CPUTot=8 RealMemory=64000 Gres={} AvailableFeatures=x,y State={} Partitions=gpu"
TALK = """
from slurm import doctor, probe, profile
probe._START_SECONDS = 120
for finding in doctor.examine_profile(profile.chosen()):
    print(finding.state, finding.text)
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A project's folder that this process sits in, and no other job's or user's variables."""
    for name in [n for n in os.environ if n.startswith(("SALMASK_", "SLURM_", "DVC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SALMASK_CLUSTER", "cluster.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    return tmp_path


@pytest.fixture
def at_cluster(desk, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setattr(probe, "_START_SECONDS", 120.0)  # the machine may be busy
    return desk


@pytest.fixture(scope="module")
def hidden(cluster, tmp_path_factory):
    """A folder, and a doctor at work in it who alone sees what is in there: it has a mount of its
    own, of which the cluster's daemons know nothing."""
    here = tmp_path_factory.mktemp("hidden")
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0"']
    if not shutil.which("unshare") or subprocess.run([*mount, here]).returncode:
        yield None
        return
    mount[-1] += ' && cd "$0" && touch dvc.yaml && cp ../cluster.yaml . && exec "$@"'
    (here.parent / "cluster.yaml").write_text(yaml.safe_dump(TINY))
    env = {k: v for k, v in cluster.env.items() if not k.startswith(("SALMASK_", "DVC_"))}
    talk = subprocess.Popen(
        [*mount, here, sys.executable, "-c", TALK],
        env=env | {"PYTHONPATH": str(ROOT), "SALMASK_CLUSTER": "cluster.yaml"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield here, talk
    talk.kill()
    talk.wait()


def told(**changes: object) -> list[Finding]:
    """All findings on a small profile with these changes."""
    fields = TINY | changes
    return list(doctor.examine_profile(Profile(**fields)))  # type: ignore[arg-type]


def jobs_left(cluster) -> str:
    return cluster.run("squeue", "--noheader", "--name=salmask-doctor", "--states=PD,R,CF,S")


def command(monkeypatch, profile: str | None) -> Result:
    """`salmask doctor` without its other examinations. profile: the text of cluster.yaml."""
    monkeypatch.setattr("salmask.commands.doctor.examine_machine", lambda *_: iter(()))
    if profile is not None:
        Path("cluster.yaml").write_text(profile)
    return CliRunner().invoke(main, ["doctor"])


# ------------------------------------------------------------------------------- on the cluster


@pytest.mark.slurm
def test_a_good_profile_is_all_ok_and_nothing_stays_behind(at_cluster, hidden):
    """hidden: starts beside it, to save time."""
    found = told(nodes=2)
    stops = [f for f in found if f.state != "ok" and "accounting is off" not in f.text]
    assert stops == [], found
    said = "\n".join(f.text for f in found)
    assert "partition test is up: 2 of 2 nodes ready, at most 60 min" in said
    assert re.search(
        r"pretraining and evaluation \(2 nodes x 1 task, .*would take it, to start at .* n\[1-2\]",
        said,
    )
    assert "saliency (1 node x 1 task" in said
    assert re.search(r"node n[12] sees the runs' folder, the project and Python", said)
    assert list((at_cluster / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({"partition": "nope"}, ["no partition nope; there are: test, short, low"]),
        ({"time_min": 61}, ["time_min 61: partition test allows 60 at most"]),
        ({"partition": "short", "time_min": None, "signal_seconds": 60}, ["no time to work"]),
        ({"nodes": 3}, ["nodes 3: partition test has 2", "sbatch refuses it: Requested node"]),
        ({"gpus": 1}, ["gpus 1: no node of partition test has more than 0", "sbatch refuses"]),
        ({"cpus": 3, "tasks_per_node": 2}, ["cpus 3 x tasks_per_node 2 = 6: no", "more than 4"]),
        ({"mem_gb": 16}, ["mem_gb 16: no node of partition test has more than 15.6 GB"]),
        ({"constraint": "a100"}, ["constraint a100: no node", "Invalid feature specification"]),
        ({"additional": {"reservation": "x"}}, ["Requested reservation is invalid"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_cluster_will_never_give_stops(at_cluster, monkeypatch, changes, complaints):
    monkeypatch.setattr(probe, "look", lambda chosen: [])
    stops = " | ".join(f.text for f in told(**changes) if f.state == "stop")
    for complaint in complaints:
        assert complaint in stops


@pytest.mark.slurm
def test_one_partition_of_a_list_is_enough(at_cluster, monkeypatch):
    monkeypatch.setattr(probe, "look", lambda chosen: [])
    found = told(partition="short,low")
    assert Finding("note", "time_min 5: partition short allows 1 at most") in found
    assert "stop" not in {f.state for f in found}


@pytest.mark.slurm
def test_a_failing_line_of_setup_is_named(at_cluster):
    found = probe.look(Profile(**TINY | {"setup": ["true", "no-such-module load x"]}))  # type: ignore[arg-type]
    (finding,) = found
    assert finding.state == "stop"
    assert "setup failed with exit code 127: no-such-module load x" in finding.text


@pytest.mark.slurm
def test_folders_that_only_this_machine_sees_are_named(hidden, cluster):
    if not hidden:
        pytest.skip("no mounts of a process's own on this machine")
    here, talk = hidden
    said = finished(talk)
    sees = rf"stop node n\d does not see the runs' folder {re.escape(str(here))}/runs, or"
    assert re.search(sees, said), said
    sees = rf"stop node n\d does not see the project {re.escape(str(here))}: clone it"
    assert re.search(sees, said), said
    assert "import" not in said and not jobs_left(cluster)


@pytest.mark.slurm
def test_a_busy_cluster_is_a_note_and_the_job_is_cancelled(at_cluster, cluster, monkeypatch):
    monkeypatch.setattr(probe, "_START_SECONDS", 1.0)
    (finding,) = probe.look(Profile(**TINY | {"additional": {"hold": True}}))  # type: ignore[arg-type]
    assert finding.state == "note"
    assert "the cluster is busy" in finding.text and "JobHeldUser" in finding.text
    assert list((at_cluster / "runs").iterdir()) == [] and not jobs_left(cluster)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_who_stops_the_doctor_leaves_nothing(at_cluster, cluster, monkeypatch, number, leaves):
    seen = []

    def ask(job: str, fingerprint: str) -> Status:
        seen.append(jobs_left(cluster))
        os.kill(os.getpid(), number)
        return Status("PENDING")

    monkeypatch.setattr(scheduler, "ask", ask)
    with pytest.raises(leaves):
        probe.look(Profile(**TINY | {"additional": {"hold": True}}))  # type: ignore[arg-type]
    assert seen[0]  # there was a job
    assert list((at_cluster / "runs").iterdir()) == [] and not jobs_left(cluster)


@pytest.mark.slurm
def test_a_controller_that_is_away_stops(at_cluster, cluster, monkeypatch):
    conf = re.sub(r"(?m)^SlurmctldPort=.*", "SlurmctldPort=1", cluster.conf.read_text())
    (at_cluster / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(at_cluster / "slurm.conf"))
    said = command(monkeypatch, yaml.safe_dump(TINY))
    assert said.exit_code == 1
    assert re.fullmatch(r"stop  Slurm's controller does not answer: Slurmctld.*DOWN\n", said.output)


# -------------------------------------------------------------------------------- without Slurm


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [
        (None, "no profile at cluster.yaml; there are "),
        ("a: [", "cluster.yaml is not valid YAML"),
        ("partitions: x", "partitions"),
    ],
)
def test_a_profile_that_cannot_be_read_stops(desk, monkeypatch, profile, complaint):
    said = command(monkeypatch, profile)
    assert said.exit_code == 1
    assert said.output.startswith("stop ") and complaint in said.output


def test_a_local_profile_needs_no_cluster(desk, monkeypatch):
    said = command(monkeypatch, "executor: local")
    assert (said.exit_code, said.output) == (0, "ok    executor local: work runs on this machine\n")


def test_a_machine_without_slurm_is_told(desk, monkeypatch):
    monkeypatch.setenv("PATH", str(desk))
    said = command(monkeypatch, "executor: slurm")
    assert said.exit_code == 1
    assert "sbatch, squeue, scontrol, scancel, srun not found" in said.output


def test_a_runs_folder_that_cannot_be_made_stops(desk, monkeypatch):
    monkeypatch.setenv("SALMASK_RUNS", "dvc.yaml")  # a file
    (finding,) = probe.look(Profile("slurm"))
    assert finding.state == "stop" and "nothing can be written to the runs' folder" in finding.text


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("01:00:00", 60), ("2-00:30:00", 2910), ("00:00:30", 0.5), ("UNLIMITED", None), ("", None)],
)
def test_limits_are_read(limit, minutes):
    assert doctor.minutes(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "count"),
    [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1),nvme:1", 4), ("gpu:t4:1,gpu:v100:2", 3),
     ("gpu:4g.20gb:3", 3)],
)  # fmt: skip
def test_gpus_are_counted(gres, count):
    assert doctor.gpus_of(doctor.read_facts(NODE.format(gres, "IDLE"))) == count


@pytest.mark.parametrize(
    ("state", "away"),
    [("IDLE", False), ("MIXED+PLANNED", False), ("IDLE+CLOUD+POWERED_DOWN", False), ("DOWN", True),
     ("IDLE*", True), ("MIXED+DRAIN", True), ("DOWN*+CLOUD+NOT_RESPONDING", True)],
)  # fmt: skip
def test_nodes_that_are_away_are_known(state, away):
    assert doctor.is_away(doctor.read_facts(NODE.format("gpu:1", state))) is away


@pytest.mark.parametrize(
    ("constraint", "names"),
    [("", []), ("a100&80g", ["a100", "80g"]), ("[rack1*2&rack2*4]|x", ["rack1", "rack2", "x"])],
)
def test_features_are_found_in_a_constraint(constraint, names):
    assert doctor.features_in(constraint) == names


def test_nodes_that_are_down_make_a_note_and_too_few_that_fit_a_stop():
    nodes = [doctor.read_facts(NODE.format(*x)) for x in (("gpu:4", "IDLE"), ("gpu:1", "DOWN"))]
    partition = {"PartitionName": "gpu", "State": "UP", "MaxTime": "UNLIMITED", "MaxNodes": "1"}
    chosen = Profile("slurm", nodes=2, gpus=2, tasks_per_node=2, constraint="x&z", time_min=9999)
    found = list(doctor.fit(chosen, partition, nodes))
    assert found == [
        Finding("ok", "partition gpu is up: 1 of 2 nodes ready, any time"),
        Finding("note", "nodes 2: jobs wait until more are ready (a DOWN)"),
        Finding("stop", "nodes 2: partition gpu gives a job 1 at most"),
        Finding("stop", "gpus 2: 2 such nodes are wanted, partition gpu has 1"),
        Finding("stop", "constraint z: no node of partition gpu has it; there are: x, y"),
    ]
    assert next(doctor.fit(chosen, partition | {"State": "DRAIN"}, nodes)).state == "stop"


@pytest.mark.parametrize(
    ("status", "printed", "state", "text"),
    [
        (Status("FAILED", exit="68:0", nodes="n7"), "", "stop", f"node n7 has no {sys.executable}"),
        (Status("FAILED", exit="72:0", nodes="n7"), "a\nno torch\n", "stop", "and torch: no torch"),
        (Status("FAILED", exit="1:0", nodes="n7"), None, "stop", "printed nothing to /runs"),
        (Status("FAILED", exit="0:53", nodes="n7"), None, "stop", "(exit code 0:53)"),
        (Status("TIMEOUT", exit="0:1", nodes="n7"), "", "note", "node n7 was not through"),
        (Status("DEADLINE", "DeadLine"), None, "note", "the cluster is busy"),
        (None, None, "note", "Slurm did not say"),
    ],
)
def test_the_end_of_the_small_job_is_understood(status, printed, state, text):
    (finding,) = probe.findings(status, printed, Path("/runs"))
    assert finding.state == state and text in finding.text
