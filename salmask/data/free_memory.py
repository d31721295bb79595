"""How much memory is free, in bytes."""

import os
from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device. For the CPU, within the limits of the machine and of the
    process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _available() or pages
    try:  # of version 2
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no control group, or no limit
        return free
    return min(free, max(0, limit - used))


def free_shared_memory() -> int:
    """Bytes that are free for the batches that worker processes hand over."""
    try:
        stats = os.statvfs(SHARED_MEMORY)
    except OSError:
        return free_memory(torch.device("cpu"))
    return stats.f_bavail * stats.f_frsize


def _available() -> int | None:
    """Free memory with the caches that the system would give up, where Linux reports it."""
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(sizes[0]) if sizes else None
