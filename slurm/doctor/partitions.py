"""Checks a profile against the partitions and nodes of the cluster, as scontrol describes them."""

import re
from collections.abc import Iterator
from typing import Literal

from salmask.findings import Finding
from slurm import scheduler
from slurm.profile import Profile

_NOT_READY = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "INVAL",
              "NOT_RESPONDING", "UNKNOWN"}  # fmt: skip
_GPU_COUNT = re.compile(r"(?:^|,)gpu(?::[^:,()]+)??:(\d+)(?![^(,])")

Fields = dict[str, str]  # one partition or node: the NAME=VALUE pairs of `scontrol show`


def read_all(kind: str, name: str) -> dict[str, Fields]:
    """All partitions or nodes, including hidden ones.

    Args:
        kind: `partition` or `node`.
        name: the field that holds the name: the key of the result.
    """
    _, output = scheduler.run_command("scontrol", "--all", "--oneliner", "show", kind)
    entries = [scheduler.parse_fields(line) for line in output.splitlines()]
    return {fields[name]: fields for fields in entries if name in fields}


def partitions_of(profile: Profile, partitions: dict[str, Fields]) -> list[str]:
    """The names of the partitions in which a job may start; sbatch accepts several."""
    if profile.partition:
        return profile.partition.split(",")
    return [name for name, fields in partitions.items() if fields.get("Default") == "YES"]


def check_partitions(profile: Profile, partitions: list[Fields]) -> Iterator[Finding]:
    """Checks all partitions. If one can run the jobs, problems of the others are notes only."""
    nodes = list(read_all("node", "NodeName").values())
    groups = []
    for partition in partitions:
        name = partition["PartitionName"]
        members = [node for node in nodes if name in node.get("Partitions", "").split(",")]
        groups.append(list(check_partition(profile, partition, members)))
    one_fits = any(all(finding.state != "stop" for finding in group) for group in groups)
    for finding in [finding for group in groups for finding in group]:
        if one_fits and finding.state == "stop":
            finding = Finding("note", finding.text)
        yield finding


def check_partition(profile: Profile, partition: Fields, nodes: list[Fields]) -> Iterator[Finding]:
    """Checks whether a partition can ever run a job of the profile.

    Args:
        profile: where and how jobs run.
        partition: the partition.
        nodes: the nodes of the partition.
    """
    name, state = partition["PartitionName"], partition.get("State", "UP")
    ready = [node for node in nodes if is_ready(node)]
    max_minutes = parse_minutes(partition.get("MaxTime", ""))
    limit = "no time limit" if max_minutes is None else f"at most {_format_minutes(max_minutes)}"
    yield Finding(
        "ok" if state == "UP" else "stop",
        f"partition {name} is {state.lower()}: {len(ready)} of {len(nodes)} nodes ready, {limit}",
    )
    if len(ready) < profile.nodes <= len(nodes):
        down = [f"{node['NodeName']} {node['State']}" for node in nodes if not is_ready(node)]
        text = f"nodes {profile.nodes}: jobs wait until more nodes are ready ({', '.join(down)})"
        yield Finding("note", text)
    for text in _time_problems(profile, partition, max_minutes):
        yield Finding("stop", text)
    max_nodes = partition.get("MaxNodes", "")
    if len(nodes) < profile.nodes:
        yield Finding("stop", f"nodes {profile.nodes}: partition {name} has {len(nodes)}")
    elif max_nodes.isdecimal() and int(max_nodes) < profile.nodes:
        yield Finding(
            "stop", f"nodes {profile.nodes}: partition {name} allows {max_nodes} for a job"
        )
    if nodes:
        yield from _check_node_sizes(profile, name, nodes)
    yield from _check_features(profile, name, nodes)


def _time_problems(profile: Profile, partition: Fields, max_minutes: float | None) -> Iterator[str]:
    name = partition["PartitionName"]
    if profile.time_min is None:
        default = parse_minutes(partition.get("DefaultTime", "")) or max_minutes
        if default is not None and 60 * default <= profile.signal_seconds:
            yield (
                f"time_min is null, so partition {name} gives jobs {_format_minutes(default)}: "
                f"signal_seconds {profile.signal_seconds} leaves no time to work"
            )
    elif max_minutes is not None and profile.time_min > max_minutes:
        yield f"time_min {profile.time_min}: partition {name} allows {max_minutes:g} at most"


def _check_node_sizes(profile: Profile, name: str, nodes: list[Fields]) -> Iterator[Finding]:
    """Checks cores, memory and GPUs of each node for a job of training, the largest kind."""
    tasks, cores = profile.tasks_per_node, profile.cores()
    times = f" x tasks_per_node {tasks}" if tasks > 1 else ""
    memory = round((profile.mem_gb or 0) * 1024) / 1024 * tasks
    cores_total = f" = {cores * tasks}" if times else ""
    memory_total = f" = {memory:.3g} GB" if times else ""
    resources: list[tuple[str, float, list[float], str]] = [
        (f"cpus {cores}{times}{cores_total}", cores * tasks, [cores_of(n) for n in nodes], ""),
        (
            f"mem_gb {profile.mem_gb or 0:g}{times}{memory_total}",
            memory,
            [memory_gb_of(n) for n in nodes],
            " GB",
        ),
        (f"gpus {profile.gpus}", profile.gpus, [gpus_of(n) for n in nodes], ""),
    ]
    for request, needed, sizes, unit in resources:
        fitting = sum(size >= needed for size in sizes)
        if fitting >= min(profile.nodes, len(nodes)):
            continue
        if fitting:
            problem = f"the job needs {profile.nodes} such nodes, partition {name} has {fitting}"
        else:
            problem = f"no node of partition {name} has more than {max(sizes):.3g}{unit}"
        yield Finding("stop", f"{request}: {problem}")


def _check_features(profile: Profile, name: str, nodes: list[Fields]) -> Iterator[Finding]:
    available = {
        feature
        for node in nodes
        for feature in node.get("AvailableFeatures", "(null)").split(",")
        if feature != "(null)"
    }
    constraint = profile.constraint or ""
    state: Literal["note", "stop"] = "note" if "|" in constraint else "stop"
    for feature in features_in(constraint):
        if feature not in available:
            text = (
                f"constraint {feature}: no node of partition {name} has this feature; features: "
                f"{', '.join(sorted(available)) or 'none'}"
            )
            yield Finding(state, text)


def parse_minutes(limit: str) -> float | None:
    """The minutes of a time limit, [DAYS-]HH:MM:SS; None for UNLIMITED, NONE and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return 1440 * days + 60 * hours + minutes + seconds / 60


def _format_minutes(minutes: float) -> str:
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def is_ready(node: Fields) -> bool:
    """Whether a job can start on the node now. Examples of states: IDLE, DOWN*, IDLE+DRAIN."""
    state = node.get("State", "")
    return "*" not in state and not _NOT_READY & set(re.findall(r"\w+", state))


def cores_of(node: Fields) -> int:
    """Number of cores that jobs may use."""
    return int(node.get("CPUEfctv") or node.get("CPUTot") or 0)


def memory_gb_of(node: Fields) -> float:
    """Memory that jobs may use, in GB."""
    return (int(node.get("RealMemory") or 0) - int(node.get("MemSpecLimit") or 0)) / 1024


def gpus_of(node: Fields) -> int:
    """Number of GPUs in the field Gres, such as gpu:a100:4(S:0-1),nvme:1 or gpu:2."""
    return sum(int(number) for number in _GPU_COUNT.findall(node.get("Gres", "")))


def features_in(constraint: str) -> list[str]:
    """The names of features in a constraint such as [rack1*2&rack2*4]|a100."""
    without_counts = re.sub(r"\*\d+", "", constraint)
    return [name for name in re.split(r"[\s&|,()\[\]!]+", without_counts) if name]
