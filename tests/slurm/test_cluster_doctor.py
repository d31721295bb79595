"""`salmask doctor` on a cluster profile, before a job is submitted."""

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
from slurm import doctor, scheduler
from slurm.doctor import partitions, probe
from slurm.profile import Profile
from slurm.scheduler import JobStatus
from tests.helpers.workspace import ROOT, SMALL_PROFILE, output_of

NODE = "NodeName=a CPUTot=8 RealMemory=64000 Gres={} AvailableFeatures=x,y State={} Partitions=gpu"
SCRIPT = """
from slurm import doctor, profile
from slurm.doctor import probe
probe._START_SECONDS = 120
for finding in doctor.examine_profile(profile.read_profile()):
    print(finding.state, finding.text)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A project's folder as the current folder, in an environment without the variables of jobs."""
    for name in [n for n in os.environ if n.startswith(("SALMASK_", "SLURM_", "DVC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SALMASK_CLUSTER", "cluster.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    return tmp_path


@pytest.fixture
def on_cluster(workspace, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setattr(probe, "_START_SECONDS", 120.0)  # the machine may be busy
    return workspace


@pytest.fixture(scope="module")
def hidden(cluster, tmp_path_factory):
    """A folder, and a doctor that runs in it, in a mount namespace of its own: the files in the
    folder are invisible to the cluster's daemons. None if this machine does not allow mounts."""
    folder = tmp_path_factory.mktemp("hidden")
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0"']
    if not shutil.which("unshare") or subprocess.run([*mount, folder]).returncode:
        yield None
        return
    mount[-1] += ' && cd "$0" && touch dvc.yaml && cp ../cluster.yaml . && exec "$@"'
    (folder.parent / "cluster.yaml").write_text(yaml.safe_dump(SMALL_PROFILE))
    env = {k: v for k, v in cluster.env.items() if not k.startswith(("SALMASK_", "DVC_"))}
    process = subprocess.Popen(
        [*mount, folder, sys.executable, "-c", SCRIPT],
        env=env | {"PYTHONPATH": str(ROOT), "SALMASK_CLUSTER": "cluster.yaml"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield folder, process
    process.kill()
    process.wait()


def findings_on(**changes: object) -> list[Finding]:
    """All findings about a small profile with these changes."""
    fields = SMALL_PROFILE | changes
    return list(doctor.examine_profile(Profile(**fields)))  # type: ignore[arg-type]


def doctor_jobs(cluster) -> str:
    return cluster.run("squeue", "--noheader", "--name=salmask-doctor", "--states=PD,R,CF,S")


def run_doctor(monkeypatch, profile: str | None) -> Result:
    """Runs `salmask doctor` without its other checks.

    Args:
        profile: the text of cluster.yaml; None for no file.
    """
    for name in ("_machine", "_project"):
        monkeypatch.setattr(f"salmask.commands.doctor.{name}", lambda *_: iter(()))
    if profile is not None:
        Path("cluster.yaml").write_text(profile)
    return CliRunner().invoke(main, ["doctor"])


# ------------------------------------------------------------------------------- on the cluster


@pytest.mark.slurm
def test_a_valid_profile_is_ok_and_no_job_or_file_remains(on_cluster, hidden):
    """hidden: starts at the same time, to save time."""
    findings = findings_on(nodes=2)
    problems = [f for f in findings if f.state != "ok" and "accounting is off" not in f.text]
    assert problems == [], findings
    output = "\n".join(f.text for f in findings)
    assert "partition test is up: 2 of 2 nodes ready, at most 60 min" in output
    assert re.search(
        r"training and evaluation \(2 nodes x 1 task, .*would accept it, to start at .* n\[1-2\]",
        output,
    )
    assert "saliency (1 node x 1 task" in output
    assert re.search(r"node n[12] has the runs' folder, the project and Python", output)
    assert list((on_cluster / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"partition": "nope"}, ["there is no partition nope; partitions: test, short, low"]),
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
def test_requests_that_the_cluster_cannot_fulfil_stop(on_cluster, monkeypatch, changes, messages):
    monkeypatch.setattr(probe, "run_probe", lambda profile: [])
    stops = " | ".join(f.text for f in findings_on(**changes) if f.state == "stop")
    for message in messages:
        assert message in stops


@pytest.mark.slurm
def test_one_partition_of_a_list_is_enough(on_cluster, monkeypatch):
    monkeypatch.setattr(probe, "run_probe", lambda profile: [])
    findings = findings_on(partition="short,low")
    assert Finding("note", "time_min 5: partition short allows 1 at most") in findings
    assert "stop" not in {f.state for f in findings}


@pytest.mark.slurm
def test_a_failing_line_of_setup_is_named(on_cluster):
    setup = ["true", "no-such-module load x"]
    (finding,) = probe.run_probe(Profile(**SMALL_PROFILE | {"setup": setup}))  # type: ignore[arg-type]
    assert finding.state == "stop"
    assert "setup failed with exit code 127: no-such-module load x" in finding.text


@pytest.mark.slurm
def test_folders_that_only_this_machine_can_read_are_named(hidden, cluster):
    if not hidden:
        pytest.skip("this machine does not allow mount namespaces")
    folder, process = hidden
    output = output_of(process)
    path = re.escape(str(folder))
    message = rf"stop node n\d cannot read or write the runs' folder {path}/runs: set"
    assert re.search(message, output), output
    message = rf"stop node n\d cannot read the project {path}: move"
    assert re.search(message, output), output
    assert "import" not in output and not doctor_jobs(cluster)


@pytest.mark.slurm
def test_a_busy_cluster_is_a_note_and_the_job_is_cancelled(on_cluster, cluster, monkeypatch):
    monkeypatch.setattr(probe, "_START_SECONDS", 1.0)
    (finding,) = probe.run_probe(Profile(**SMALL_PROFILE | {"additional": {"hold": True}}))  # type: ignore[arg-type]
    assert finding.state == "note"
    assert "the cluster is busy" in finding.text and "JobHeldUser" in finding.text
    assert list((on_cluster / "runs").iterdir()) == [] and not doctor_jobs(cluster)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stopped_doctor_leaves_no_job_and_no_file(
    on_cluster, cluster, monkeypatch, number, exception
):
    jobs = []

    def job_status(job: str, fingerprint: str) -> JobStatus:
        jobs.append(doctor_jobs(cluster))
        os.kill(os.getpid(), number)
        return JobStatus("PENDING")

    monkeypatch.setattr(scheduler, "job_status", job_status)
    with pytest.raises(exception):
        probe.run_probe(Profile(**SMALL_PROFILE | {"additional": {"hold": True}}))  # type: ignore[arg-type]
    assert jobs[0]  # the job existed before the signal
    assert list((on_cluster / "runs").iterdir()) == [] and not doctor_jobs(cluster)


@pytest.mark.slurm
def test_a_controller_that_does_not_answer_stops(on_cluster, cluster, monkeypatch):
    conf = re.sub(r"(?m)^SlurmctldPort=.*", "SlurmctldPort=1", cluster.conf.read_text())
    (on_cluster / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(on_cluster / "slurm.conf"))
    result = run_doctor(monkeypatch, yaml.safe_dump(SMALL_PROFILE))
    assert result.exit_code == 1
    assert re.fullmatch(
        r"stop  Slurm's controller does not answer: Slurmctld.*DOWN\n", result.output
    )


# -------------------------------------------------------------------------------- without Slurm


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, "there is no file cluster.yaml; profiles: "),
        ("a: [", "cluster.yaml is not valid YAML"),
        ("partitions: x", "partitions"),
    ],
)
def test_a_profile_that_cannot_be_read_stops(workspace, monkeypatch, profile, message):
    result = run_doctor(monkeypatch, profile)
    assert result.exit_code == 1
    assert result.output.startswith("stop ") and message in result.output


def test_a_local_profile_needs_no_cluster(workspace, monkeypatch):
    result = run_doctor(monkeypatch, "executor: local")
    assert (result.exit_code, result.output) == (
        0,
        "ok    executor local: work runs on this machine\n",
    )


def test_a_machine_without_slurm_stops(workspace, monkeypatch):
    monkeypatch.setenv("PATH", str(workspace))
    result = run_doctor(monkeypatch, "executor: slurm")
    assert result.exit_code == 1
    assert "sbatch, squeue, scontrol, scancel, srun not found" in result.output


def test_a_runs_folder_that_cannot_be_created_stops(workspace, monkeypatch):
    monkeypatch.setenv("SALMASK_RUNS", "dvc.yaml")  # a file
    (finding,) = probe.run_probe(Profile("slurm"))
    assert finding.state == "stop" and "nothing can be written to the runs' folder" in finding.text


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("01:00:00", 60), ("2-00:30:00", 2910), ("00:00:30", 0.5), ("UNLIMITED", None), ("", None)],
)
def test_time_limits_are_parsed(limit, minutes):
    assert partitions.parse_minutes(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "count"),
    [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1),nvme:1", 4), ("gpu:t4:1,gpu:v100:2", 3),
     ("gpu:4g.20gb:3", 3)],
)  # fmt: skip
def test_gpus_are_counted(gres, count):
    assert partitions.gpus_of(scheduler.parse_fields(NODE.format(gres, "IDLE"))) == count


@pytest.mark.parametrize(
    ("state", "ready"),
    [("IDLE", True), ("MIXED+PLANNED", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("DOWN", False),
     ("IDLE*", False), ("MIXED+DRAIN", False), ("DOWN*+CLOUD+NOT_RESPONDING", False)],
)  # fmt: skip
def test_nodes_that_cannot_start_jobs_are_not_ready(state, ready):
    assert partitions.is_ready(scheduler.parse_fields(NODE.format("gpu:1", state))) is ready


@pytest.mark.parametrize(
    ("constraint", "names"),
    [("", []), ("a100&80g", ["a100", "80g"]), ("[rack1*2&rack2*4]|x", ["rack1", "rack2", "x"])],
)
def test_features_are_parsed_from_a_constraint(constraint, names):
    assert partitions.features_in(constraint) == names


def test_nodes_that_are_down_are_a_note_and_too_few_that_fit_stop():
    nodes = [
        scheduler.parse_fields(NODE.format(*x)) for x in (("gpu:4", "IDLE"), ("gpu:1", "DOWN"))
    ]
    partition = {"PartitionName": "gpu", "State": "UP", "MaxTime": "UNLIMITED", "MaxNodes": "1"}
    profile = Profile("slurm", nodes=2, gpus=2, tasks_per_node=2, constraint="x&z", time_min=9999)
    findings = list(partitions.check_partition(profile, partition, nodes))
    assert findings == [
        Finding("ok", "partition gpu is up: 1 of 2 nodes ready, no time limit"),
        Finding("note", "nodes 2: jobs wait until more nodes are ready (a DOWN)"),
        Finding("stop", "nodes 2: partition gpu allows 1 for a job"),
        Finding("stop", "gpus 2: the job needs 2 such nodes, partition gpu has 1"),
        Finding("stop", "constraint z: no node of partition gpu has this feature; features: x, y"),
    ]
    drained = partitions.check_partition(profile, partition | {"State": "DRAIN"}, nodes)
    assert next(drained).state == "stop"


@pytest.mark.parametrize(
    ("status", "printed", "state", "text"),
    [
        (
            JobStatus("FAILED", exit="68:0", nodes="n7"),
            "",
            "stop",
            f"n7 has no {sys.executable}",
        ),
        (
            JobStatus("FAILED", exit="72:0", nodes="n7"),
            "a\nno torch\n",
            "stop",
            "torch: no torch",
        ),
        (JobStatus("FAILED", exit="1:0", nodes="n7"), None, "stop", "wrote nothing to /runs"),
        (JobStatus("FAILED", exit="0:53", nodes="n7"), None, "stop", "(exit code 0:53)"),
        (
            JobStatus("TIMEOUT", exit="0:1", nodes="n7"),
            "",
            "note",
            "needs more than a minute",
        ),
        (JobStatus("DEADLINE", "DeadLine"), None, "note", "the cluster is busy"),
        (None, None, "note", "Slurm does not give"),
    ],
)
def test_the_end_of_the_probe_job_is_interpreted(status, printed, state, text):
    (finding,) = probe.interpret(status, printed, Path("/runs"))
    assert finding.state == state and text in finding.text
