"""Kills at random times in all stages that run as jobs, until the given number of kills succeeded.

`pytest -m long tests/slurm/test_random_kills.py` makes SALMASK_TEST_KILLS (20). Shorter tests make
each kind of kill once: test_resume_jobs.py, test_arrays.py, tests/pipeline/test_resume.py and
tests/saliency/test_kills.py. SALMASK_TEST_SEED chooses the times and the kinds of kills. What a
kill interrupts still depends on the speed of the machine.
"""

import copy
import os
import random
import shutil
import signal
import subprocess
from collections import Counter

import pytest

from salmask.files import tree_digest
from tests.helpers.project import TINY
from tests.helpers.workspace import Workspace, leftovers, wait_until

pytestmark = pytest.mark.slurm

MANY = int(os.environ.get("SALMASK_TEST_KILLS", "20"))
SEED = int(os.environ.get("SALMASK_TEST_SEED", "0"))
KILLS_OF_A_STAGE = 2  # per launch of the stage; then it may end
MAX_SECONDS = 12.0  # between two kills: about the duration of an undisturbed stage
LIMIT = 300.0
STAGES = {  # the name of its run: the command, the artifact
    "saliency": (["stages.saliency"], "saliency"),
    "pretrain-blur": (["stages.pretrain", "--run", "blur"], "pretrain/blur"),
    "knn-blur": (["stages.evaluate", "--protocol", "knn", "--run", "blur"], "evaluate/blur/knn"),
}
KINDS = ("task", "launcher", "scancel", "requeue")


@pytest.mark.long
@pytest.mark.timeout(300 + 60 * MANY)
def test_after_random_kills_the_pipeline_gives_the_same_bytes(tmp_path, cluster, copy_prepared):
    params = copy.deepcopy(TINY)
    params["train"]["epochs"] = 20
    params["saliency"]["shard_rows"] = 32
    params["runs"] = {"blur": {"mask": {"name": "blur"}}}
    project = copy_prepared(tmp_path / "project", params)
    local = {"SALMASK_CLUSTER": "local.yaml", "SALMASK_RUNS": str(tmp_path / "undisturbed")}
    (project.folder / "local.yaml").write_text("executor: local\ncpus: 1\n")
    for command, _ in STAGES.values():
        project.stage(command[0].removeprefix("stages."), *command[1:], **local)

    def digests() -> dict[str, str]:
        return {a: tree_digest(project.folder / "artifacts" / a) for _, a in STAGES.values()}

    undisturbed, workspace = digests(), Workspace(project.folder, str(cluster.conf))
    generator, hits = random.Random(SEED), Counter[str]()
    while hits.total() < MANY:
        shutil.rmtree(project.folder / "runs", ignore_errors=True)
        for _, artifact in STAGES.values():
            shutil.rmtree(project.folder / "artifacts" / artifact)
        for name in STAGES:
            # Saliency is an array of two jobs. Another number of tasks would change the rounding of
            # a pretraining.
            nodes = 2 if name == "saliency" else 1
            workspace.write_profile(nodes=nodes, checkpoint_minutes=0.0001)
            left = min(KILLS_OF_A_STAGE, MANY - hits.total())
            hits.update(run_with_kills(workspace, name, left, generator, cluster))
        assert digests() == undisturbed, hits
        wait_until(lambda: job_names(cluster).isdisjoint(p.name for p in run_folders(workspace)))
        wait_until(lambda: leftovers(workspace.folder) == [])
        assert not list(workspace.folder.glob("runs/*/work"))
    for hit, count in sorted(hits.items()):
        print(f"{count:3} {hit}")


def run_with_kills(
    workspace: Workspace, name: str, kills: int, generator: random.Random, cluster
) -> list[str]:
    """Launches a stage until it succeeds, and makes `kills` kills meanwhile.

    Returns a description of each kill.
    """
    hits: list[str] = []
    launcher, failures = None, 0  # failures since the last kill
    while launcher is None or launcher.returncode != 0:
        if launcher is None or launcher.returncode is not None:
            launcher = workspace.start("-m", *STAGES[name][0])
        seconds = generator.uniform(0, MAX_SECONDS) if len(hits) < kills else LIMIT
        try:
            output = launcher.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            assert len(hits) < kills, f"{name} does not end; {hits}"
            hit, failures = kill_one(workspace, name, generator, launcher, cluster), 0
            hits += [f"{name}: {hit}"] if hit else []
        else:
            assert launcher.returncode in (0, 1, -signal.SIGKILL), output
            assert "Traceback" not in output
            failures += launcher.returncode != 0
            assert failures < 3, output  # the killed job, and one to which a launcher attached
    return hits


def kill_one(
    workspace: Workspace,
    name: str,
    generator: random.Random,
    launcher: subprocess.Popen[str],
    cluster,
) -> str:
    """Makes a kill of one of KINDS.

    Returns the kind and the states of the run's jobs before it; "" if there was nothing to kill.
    """
    kind, jobs = generator.choice(KINDS), active_jobs(workspace, name, cluster)
    if kind == "launcher":
        os.killpg(launcher.pid, signal.SIGKILL)
    elif not jobs:
        return ""
    else:
        job = generator.choice(jobs)[0]
        commands = {"scancel": ["scancel", job], "requeue": ["scontrol", "requeue", job]}
        try:
            if kind == "task":
                os.kill(workspace.first_task_pid(name), signal.SIGKILL)
            else:
                cluster.run(*commands[kind])
        except (AssertionError, ProcessLookupError, subprocess.CalledProcessError):
            return ""  # the job waits in the queue, or has just ended
    return f"{kind}, jobs: {' '.join(sorted(state for _, state in jobs)) or 'none'}"


def run_folders(workspace: Workspace):
    return workspace.folder.glob("runs/*")


def active_jobs(workspace: Workspace, name: str, cluster) -> list[tuple[str, str]]:
    """Id and state of a run's jobs that have not ended."""
    try:
        run = workspace.run_folder(name).name
    except ValueError:
        return []
    listed = cluster.run("squeue", "--noheader", f"--name={run}", "--format=%i %T").splitlines()
    return [(job, state) for job, state in (line.split() for line in listed)]


def job_names(cluster) -> set[str]:
    return set(cluster.run("squeue", "--noheader", "--format=%j").splitlines())
