"""Kills at random instants, through all stages that are jobs, and over again until enough have hit.

SALMASK_TEST_KILLS says how many; SALMASK_TEST_SEED, which ones. What a kill meets depends on the
machine all the same: the instants are the same, the jobs are as fast as they are.
"""

import copy
import os
import random
import shutil
import signal
import subprocess
from collections import Counter

import pytest

from salmask.provenance import tree_digest
from tests.helpers.desk import Desk, leftovers, until
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.slurm

KILLS = int(os.environ.get("SALMASK_TEST_KILLS", "4"))
SEED = int(os.environ.get("SALMASK_TEST_SEED", "0"))
AT_ONCE = 2  # so many for one run of a stage; then it may end
SECONDS = 12.0  # between two kills, at most: about what an undisturbed stage takes
LIMIT = 300.0
STAGES = {  # the name of its run: the command, the artifact
    "saliency": (["stages.saliency"], "saliency"),
    "pretrain-blur": (["stages.pretrain", "--run", "blur"], "pretrain/blur"),
    "knn-blur": (["stages.knn", "--run", "blur"], "evaluate/blur/knn"),
}
KINDS = ("task", "launcher", "scancel", "requeue")


@pytest.mark.timeout(300 + 60 * KILLS)
def test_killed_at_random_the_pipeline_ends_in_the_same_bytes(tmp_path, cluster):
    params = copy.deepcopy(TINY)
    params["train"]["epochs"] = 20
    params["saliency"]["shard_rows"] = 32
    params["runs"] = {"blur": {"mask": {"name": "blur"}}}
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", params)
    calm = {"SALMASK_CLUSTER": "calm.yaml", "SALMASK_RUNS": str(tmp_path / "calm")}
    (project.folder / "calm.yaml").write_text("executor: local\ncpus: 1\n")
    for command in (["stages.prepare"], ["stages.localizer"], *(c for c, _ in STAGES.values())):
        project.stage(command[0].removeprefix("stages."), *command[1:], **calm)

    def made() -> dict[str, str]:
        return {a: tree_digest(project.folder / "artifacts" / a) for _, a in STAGES.values()}

    wanted, desk = made(), Desk(project.folder, str(cluster.conf))
    draw, hits = random.Random(SEED), Counter[str]()
    while hits.total() < KILLS:
        shutil.rmtree(project.folder / "runs", ignore_errors=True)
        for _, artifact in STAGES.values():
            shutil.rmtree(project.folder / "artifacts" / artifact)
        for name in STAGES:
            # Saliency is an array of two; the number of tasks decides a pretraining's roundings.
            desk.profile(nodes=2 if name == "saliency" else 1, checkpoint_minutes=0.0001)
            hits.update(suffer(desk, name, min(AT_ONCE, KILLS - hits.total()), draw, cluster))
        assert made() == wanted, hits
        until(lambda: names_of_jobs(cluster).isdisjoint(p.name for p in desk.folder.glob("runs/*")))
        until(lambda: leftovers(desk.folder) == [])
        assert not list(desk.folder.glob("runs/*/work"))
    for hit, count in sorted(hits.items()):
        print(f"{count:3} {hit}")


def suffer(desk: Desk, name: str, kills: int, draw: random.Random, cluster) -> list[str]:
    """Launches a stage again until it ends well, and kills so often meanwhile. What was hit."""
    hits: list[str] = []
    launcher, failures = None, 0  # those since the last kill
    while launcher is None or launcher.returncode != 0:
        if launcher is None or launcher.returncode is not None:
            launcher = desk.start("-m", *STAGES[name][0])
        seconds = draw.uniform(0, SECONDS) if len(hits) < kills else LIMIT
        try:
            said = launcher.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            assert len(hits) < kills, f"{name} does not end; {hits}"
            met, failures = strike(desk, name, draw, launcher, cluster), 0
            hits += [f"{name}: {met}"] if met else []
        else:
            assert launcher.returncode in (0, 1, -signal.SIGKILL), said
            assert "Traceback" not in said
            failures += launcher.returncode != 0
            assert failures < 3, said  # the job that was hit, and one that was attached to it
    return hits


def strike(
    desk: Desk, name: str, draw: random.Random, launcher: subprocess.Popen[str], cluster
) -> str:
    """Kills one of KINDS; what, and the states of the run's jobs just before. "" if there was
    nothing of that kind to kill."""
    kind, jobs = draw.choice(KINDS), jobs_of(desk, name, cluster)
    if kind == "launcher":
        os.killpg(launcher.pid, signal.SIGKILL)
    elif not jobs:
        return ""
    else:
        job = draw.choice(jobs)[0]
        commands = {"scancel": ["scancel", job], "requeue": ["scontrol", "requeue", job]}
        try:
            if kind == "task":
                os.kill(desk.task(name), signal.SIGKILL)
            else:
                cluster.run(*commands[kind])
        except (AssertionError, ProcessLookupError, subprocess.CalledProcessError):
            return ""  # it waits in the queue, or has just ended
    return f"{kind}, jobs: {' '.join(sorted(state for _, state in jobs)) or 'none'}"


def jobs_of(desk: Desk, name: str, cluster) -> list[tuple[str, str]]:
    """A run's jobs that Slurm has not ended: id and state."""
    try:
        run = desk.run(name).name
    except ValueError:
        return []
    listed = cluster.run("squeue", "--noheader", f"--name={run}", "--format=%i %T").splitlines()
    return [(job, state) for job, state in (line.split() for line in listed)]


def names_of_jobs(cluster) -> set[str]:
    return set(cluster.run("squeue", "--noheader", "--format=%j").splitlines())
