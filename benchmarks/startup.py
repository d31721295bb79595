"""CPU seconds until a command has started: imports, and the work of commands that do little.

Run it from the project's folder: python -m benchmarks.startup
"""

import resource
import statistics
import subprocess
import sys

COMMANDS = [
    "-m salmask.commands.cli --help",
    "-m salmask.commands.cli results",
    "-m salmask.commands.cli lineage params.yaml",
    "-m slurm status",
    "-m stages.code",
    "-m stages.report --wrong",
    "-m salmask.commands.cli check",
    "-m salmask.commands.cli suite",
    *(f"-c import stages.{stage}" for stage in ("prepare", "saliency", "pretrain", "detect")),
    "-c import torch",
]
ROUNDS = 3


def main() -> None:
    """Prints the median of the CPU seconds of each command."""
    for command in COMMANDS:
        words = command.split(" ", 1) if command.startswith("-c") else command.split()
        seconds = statistics.median(cpu_seconds([sys.executable, *words]) for _ in range(ROUNDS))
        print(f"{seconds:5.2f} s CPU  python {command}")


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of a command and its children. Its exit code does not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
