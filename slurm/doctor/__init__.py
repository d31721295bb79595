"""The cluster's part of `salmask doctor`: checks a profile against Slurm before the first run."""

import re
import shutil
from collections.abc import Iterator

from salmask.findings import Finding
from slurm import scheduler
from slurm.doctor import probe
from slurm.doctor.dry_run import dry_runs
from slurm.doctor.partitions import check_partitions, partitions_of, read_all
from slurm.profile import Profile

_COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def examine_profile(profile: Profile) -> Iterator[Finding]:
    """Yields all findings about a profile. The last check runs a job of some seconds."""
    if profile.executor != "slurm":
        yield Finding("ok", f"executor {profile.executor}: work runs on this machine")
        return
    if missing := [name for name in _COMMANDS if not shutil.which(name)]:
        yield Finding("stop", f"{', '.join(missing)} not found: run this on a login node of Slurm")
        return
    _, output = scheduler.run_command("scontrol", "ping")
    if " is UP" not in output:
        yield Finding("stop", f"Slurm's controller does not answer: {_ping_error(output)}")
        return
    _, config = scheduler.run_command("scontrol", "show", "config")
    yield Finding("ok", f"Slurm {_setting(config, 'SLURM_VERSION')} answers")
    partitions = read_all("partition", "PartitionName")
    names = partitions_of(profile, partitions)
    available = ", ".join(partitions)
    for name in names:
        if name not in partitions:
            yield Finding("stop", f"there is no partition {name}; partitions: {available}")
    if not names:
        yield Finding(
            "stop", f"partition is null and Slurm has no default; partitions: {available}"
        )
    names = [name for name in names if name in partitions]
    yield from check_partitions(profile, [partitions[name] for name in names])
    if names:
        yield from dry_runs(profile)
    yield _check_accounting(profile, config)
    if names:
        yield from probe.run_probe(profile)


def _ping_error(output: str) -> str:
    """The line about the controller, without banners and messages about retries."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    messages = [line for line in lines if line.startswith("Slurmctld")] or lines[-1:]
    return "; ".join(messages) or "scontrol printed nothing"


def _setting(config: str, name: str) -> str:
    """The value of one setting in the output of `scontrol show config`."""
    match = re.search(rf"^{name}\s*=\s*(.*?)\s*$", config, re.MULTILINE)
    return match.group(1) if match else ""


def _check_accounting(profile: Profile, config: str) -> Finding:
    if _setting(config, "AccountingStorageType") not in ("", "(null)", "accounting_storage/none"):
        return Finding("ok", "accounting is on: sacct shows how jobs ended")
    text = "accounting is off: the end of a job is read from scontrol instead"
    if unchecked := [name for name in ("account", "qos") if getattr(profile, name)]:
        text += f"; Slurm does not check the profile's {' and '.join(unchecked)}"
    return Finding("note", text)
