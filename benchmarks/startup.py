"""CPU seconds until a command has started: imports, and the work of commands that do little.

python -m benchmarks.startup       # in the project's folder
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.ratios import report

COMMANDS = {  # command -> goal, CPU seconds
    "-m salmask.commands.cli --help": 1,
    "-m salmask.commands.cli results": 1,
    "-m salmask.commands.cli lineage params.yaml": 1,
    "-m slurm status": 1,
    "-m stages.code": 1,
    "-m stages.report --wrong": 1,
    "-m salmask.commands.cli check": 3,
    "-m salmask.commands.cli suite": 3,
    "-c import stages.prepare": 3,
    "-c import stages.saliency": 3,
    "-c import stages.pretrain": 3,
    "-c import stages.detect": 3,
}
ROUNDS = 3


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures.")
def main(json_file: Path | None) -> None:
    """Prints the median of the CPU seconds of each command."""
    figures = {}
    for command, goal in COMMANDS.items():
        words = command.split(" ", 1) if command.startswith("-c") else command.split()
        seconds = statistics.median(cpu_seconds([sys.executable, *words]) for _ in range(ROUNDS))
        figures[command.removeprefix("-m ").removeprefix("-c ")] = (seconds, goal)
    report(figures, json_file)


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of a command and its children. Its exit code does not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
