"""Whether the cluster will take a profile's jobs: asked of Slurm before the first run."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Literal

from salmask.findings import Finding
from slurm import probe, scheduler
from slurm.profile import SHARED, Profile

_COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")
_AWAY = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "INVAL",
         "NOT_RESPONDING", "UNKNOWN"}  # fmt: skip
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)??:(\d+)(?![^(,])")
_KINDS = {SHARED[0]: "pretraining and evaluation", "saliency": "saliency"}

Facts = dict[str, str]  # what scontrol says of one thing: NAME=VALUE ...


def examine_profile(chosen: Profile) -> Iterator[Finding]:
    """Holds a profile against the live cluster; the last finding takes a job of some seconds."""
    if chosen.executor != "slurm":
        yield Finding("ok", f"executor {chosen.executor}: work runs on this machine")
        return
    missing = [name for name in _COMMANDS if not shutil.which(name)]
    if missing:
        yield Finding(
            "stop", f"{', '.join(missing)} not found: is this a machine from which jobs start?"
        )
        return
    _, said = scheduler.call("scontrol", "ping")
    if " is UP" not in said:
        yield Finding("stop", f"Slurm's controller does not answer: {_gist(said)}")
        return
    _, config = scheduler.call("scontrol", "show", "config")
    yield Finding("ok", f"Slurm {_setting(config, 'SLURM_VERSION')} answers")
    partitions = _ask("partition", "PartitionName")
    names = _partitions_of(chosen, partitions)
    known = ", ".join(partitions)
    for name in names:
        if name not in partitions:
            yield Finding("stop", f"no partition {name}; there are: {known}")
    if not names:
        yield Finding("stop", f"partition is null, and Slurm has no default; there are: {known}")
    names = [name for name in names if name in partitions]
    yield from _fits(chosen, [partitions[name] for name in names])
    if names:
        yield from _verdicts(chosen)
    yield from _accounting(chosen, config)
    if names:
        yield from probe.look(chosen)


def _gist(said: str) -> str:
    """The line that tells, among banners and retries."""
    lines = [line.strip() for line in said.splitlines() if re.search(r"\w", line)]
    told = [line for line in lines if line.startswith("Slurmctld")] or lines[-1:]
    return "; ".join(told) or "it says nothing"


def _ask(kind: str, name: str) -> dict[str, Facts]:
    """All partitions or nodes by name, hidden ones too."""
    _, said = scheduler.call("scontrol", "--all", "--oneliner", "show", kind)
    found = [read_facts(line) for line in said.splitlines()]
    return {facts[name]: facts for facts in found if name in facts}


def read_facts(line: str) -> Facts:
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def _setting(config: str, name: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(.*?)\s*$", config, re.MULTILINE)
    return found.group(1) if found else ""


# --------------------------------------------------------------------- the partition and its nodes


def _partitions_of(chosen: Profile, partitions: dict[str, Facts]) -> list[str]:
    """Those the jobs may start in: sbatch takes a list."""
    if chosen.partition:
        return chosen.partition.split(",")
    return [name for name, facts in partitions.items() if facts.get("Default") == "YES"]


def _fits(chosen: Profile, partitions: list[Facts]) -> Iterator[Finding]:
    """What each partition has to offer. One that fits is enough, so then others get notes only."""
    nodes = list(_ask("node", "NodeName").values())
    found = []
    for facts in partitions:
        name = facts["PartitionName"]
        inside = [node for node in nodes if name in node.get("Partitions", "").split(",")]
        found.append(list(fit(chosen, facts, inside)))
    enough = any(all(finding.state != "stop" for finding in one) for one in found)
    for finding in [finding for one in found for finding in one]:
        if enough and finding.state == "stop":
            finding = Finding("note", finding.text)
        yield finding


def fit(chosen: Profile, partition: Facts, nodes: list[Facts]) -> Iterator[Finding]:
    """Whether one partition can ever hold a job of the profile. nodes: those inside it."""
    name, state = partition["PartitionName"], partition.get("State", "UP")
    ready = [node for node in nodes if not is_away(node)]
    longest = minutes(partition.get("MaxTime", ""))
    limit = "any time" if longest is None else f"at most {_clock(longest)}"
    yield Finding(
        "ok" if state == "UP" else "stop",
        f"partition {name} is {state.lower()}: {len(ready)} of {len(nodes)} nodes ready, {limit}",
    )
    if len(ready) < chosen.nodes <= len(nodes):
        away = ", ".join(f"{node['NodeName']} {node['State']}" for node in nodes if is_away(node))
        yield Finding("note", f"nodes {chosen.nodes}: jobs wait until more are ready ({away})")
    for text in _time(chosen, partition, longest):
        yield Finding("stop", text)
    most = partition.get("MaxNodes", "")
    if len(nodes) < chosen.nodes:
        yield Finding("stop", f"nodes {chosen.nodes}: partition {name} has {len(nodes)}")
    elif most.isdecimal() and int(most) < chosen.nodes:
        yield Finding("stop", f"nodes {chosen.nodes}: partition {name} gives a job {most} at most")
    if nodes:
        yield from _sizes(chosen, name, nodes)
    yield from _features(chosen, name, nodes)


def _time(chosen: Profile, partition: Facts, longest: float | None) -> Iterator[str]:
    name = partition["PartitionName"]
    if chosen.time_min is None:
        given = minutes(partition.get("DefaultTime", "")) or longest
        if given is not None and 60 * given <= chosen.signal_seconds:
            yield (
                f"time_min is null, so partition {name} gives jobs {_clock(given)}: "
                f"signal_seconds {chosen.signal_seconds} leaves no time to work"
            )
    elif longest is not None and chosen.time_min > longest:
        yield f"time_min {chosen.time_min}: partition {name} allows {longest:g} at most"


def _sizes(chosen: Profile, name: str, nodes: list[Facts]) -> Iterator[Finding]:
    """Cores, memory and GPUs that pretraining wants of each node; other jobs want less."""
    tasks, each = chosen.tasks_per_node, round((chosen.mem_gb or 0) * 1024)
    per = f" x tasks_per_node {tasks}" if tasks > 1 else ""
    wanted: list[tuple[str, int, Callable[[Facts], int]]] = [
        (f"cpus {chosen.cores()}{per}", chosen.cores() * tasks, cores_of),
        (f"mem_gb {chosen.mem_gb:g}{per}" if chosen.mem_gb else "", each * tasks, memory_of),
        (f"gpus {chosen.gpus}", chosen.gpus, gpus_of),
    ]
    for told, need, has in wanted:
        sizes = [has(node) for node in nodes]
        fitting = sum(size >= need for size in sizes)
        if fitting >= min(chosen.nodes, len(nodes)):
            continue
        shown = [f"{x / 1024:.3g} GB" if has is memory_of else f"{x}" for x in (need, max(sizes))]
        so = f" = {shown[0]}" if per and has is not gpus_of else ""
        if fitting:
            why = f"{chosen.nodes} such nodes are wanted, partition {name} has {fitting}"
        else:
            why = f"no node of partition {name} has more than {shown[1]}"
        yield Finding("stop", f"{told}{so}: {why}")


def _features(chosen: Profile, name: str, nodes: list[Facts]) -> Iterator[Finding]:
    there = {
        feature
        for node in nodes
        for feature in node.get("AvailableFeatures", "(null)").split(",")
        if feature != "(null)"
    }
    state: Literal["note", "stop"] = "note" if "|" in (chosen.constraint or "") else "stop"
    for feature in features_in(chosen.constraint or ""):
        if feature not in there:
            listed = ", ".join(sorted(there)) or "none"
            text = f"constraint {feature}: no node of partition {name} has it; there are: {listed}"
            yield Finding(state, text)


def minutes(told: str) -> float | None:
    """Of a limit as Slurm spells it, [DAYS-]HH:MM:SS; None for UNLIMITED, NONE and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", told)
    if not found:
        return None
    days, hours, mins, seconds = (int(x or 0) for x in found.groups())
    return 1440 * days + 60 * hours + mins + seconds / 60


def _clock(mins: float) -> str:
    return f"{mins:g} min" if mins < 120 else f"{mins / 60:.3g} h"


def is_away(node: Facts) -> bool:
    """Whether no job starts there now: DOWN*, IDLE+DRAIN, ..."""
    state = node.get("State", "")
    return "*" in state or bool(_AWAY & set(re.findall(r"\w+", state)))


def cores_of(node: Facts) -> int:
    return int(node.get("CPUEfctv") or node.get("CPUTot") or 0)


def memory_of(node: Facts) -> int:
    """In MB, what jobs may have."""
    return int(node.get("RealMemory") or 0) - int(node.get("MemSpecLimit") or 0)


def gpus_of(node: Facts) -> int:
    """Of Gres such as gpu:a100:4(S:0-1),nvme:1 or gpu:2."""
    return sum(int(number) for number in _GPUS.findall(node.get("Gres", "")))


def features_in(constraint: str) -> list[str]:
    """The names in a constraint such as [rack1*2&rack2*4]|a100."""
    plain = re.sub(r"\*\d+", "", constraint)
    return [name for name in re.split(r"[\s&|,()\[\]!]+", plain) if name]


# ------------------------------------------------------------------------- what Slurm itself says


def _verdicts(chosen: Profile) -> Iterator[Finding]:
    """Asks sbatch about a job of each kind, without submitting one."""
    alike = chosen.tasks(SHARED[0]) == (1, 1)
    kinds = {SHARED[0]: "every stage"} if alike else _KINDS
    for stage, told in kinds.items():
        code, said = probe.sbatch(probe.script(chosen, stage, [], "true"), "--test-only")
        shape = _shape(chosen, stage)
        if code:
            yield Finding("stop", f"{told} ({shape}): sbatch refuses it: {probe.refusal(said)}")
            continue
        when = re.search(r"to start at (\S+) using .* on nodes (\S+)", said)
        start = f", to start at {when.group(1)} on {when.group(2)}" if when else ""
        yield Finding("ok", f"{told} ({shape}): sbatch would take it{start}")


def _shape(chosen: Profile, stage: str) -> str:
    nodes, tasks = chosen.tasks(stage)
    facts = [f"{nodes} node{'s' * (nodes > 1)} x {tasks} task{'s' * (tasks > 1)}"]
    facts += [f"cpus {chosen.cores()}"]
    facts += [f"gpus {min(chosen.gpus, tasks)}"] if chosen.gpus else []
    facts += [f"{chosen.time_min} min"] if chosen.time_min else []
    return ", ".join(facts)


def _accounting(chosen: Profile, config: str) -> Iterator[Finding]:
    if _setting(config, "AccountingStorageType") not in ("", "(null)", "accounting_storage/none"):
        yield Finding("ok", "accounting is on: sacct knows how jobs ended")
        return
    text = "accounting is off: the end of a job is noticed all the same, through scontrol"
    if named := [name for name in ("account", "qos") if getattr(chosen, name)]:
        text += f"; Slurm does not check the profile's {' and '.join(named)}"
    yield Finding("note", text)
