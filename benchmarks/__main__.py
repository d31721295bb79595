"""All benchmarks with a goal, in one table: `make bench`.

    python -m benchmarks [--json FILE] [--only step --only scale]

Each benchmark runs in a process of its own, with the options of `BENCHMARKS`, and measures ratios,
which can be compared between machines. A ratio is met when it is at most its goal. All of them take
less than ten minutes on two CPU cores.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import tabulate

BENCHMARKS = {
    "loader 224 px": "loader --size 224",
    "loader 64 px": "loader --size 64",
    "masks": "masks",
    "step": "step --rounds 3",
    "saliency": "saliency_stage --count 96 --rounds 1",
    "evaluation": "evaluation --sizes 10000 --sizes 20000",
    "scale": "scale",
    "detect": "detect --rounds 1",
    "start-up": "startup",
}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measure(command: str, file: Path) -> dict[str, dict[str, float]]:
    """The figures that a benchmark writes: {name: {"value": ..., "goal": ...}}.

    Raises CalledProcessError if the benchmark fails.
    """
    module, *options = command.split()
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *options, "--json", str(file)], check=True
    )
    return json.loads(file.read_text(encoding="utf-8"))


@click.command()
@click.option("--json", "output", type=click.Path(path_type=Path), help="Writes all figures there.")
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="May be repeated.")
def main(output: Path | None, only: tuple[str, ...]) -> None:
    """Runs the benchmarks and prints their figures beside the goals."""
    figures, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in only or BENCHMARKS:
            print(f"--- {name}", flush=True)
            start = time.monotonic()
            figures[name] = measure(BENCHMARKS[name], Path(folder, "figures.json"))
            seconds[name] = round(time.monotonic() - start)
    rows = [
        (benchmark, name, entry["value"], entry["goal"], verdict(entry))
        for benchmark, entries in figures.items()
        for name, entry in entries.items()
    ]
    headers = ("benchmark", "figure", "value", "goal", "")
    print(tabulate.tabulate(rows, headers=headers, floatfmt=".3g"))
    print(f"{sum(seconds.values())} s: " + ", ".join(f"{n} {s}" for n, s in seconds.items()))
    if output:
        content = {"machine": machine(), "seconds": seconds, "figures": figures}
        output.write_text(json.dumps(content, indent=2) + "\n")


def verdict(entry: dict[str, float]) -> str:
    """Whether a figure meets its goal, an upper limit."""
    return "met" if entry["value"] <= entry["goal"] else "missed"


if __name__ == "__main__":
    main()
