"""What a process does not import before it needs it: torch, torchvision, timm, matplotlib, ..."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = sorted(
    f"stages.{path.stem}" for path in (ROOT / "stages").glob("[a-z]*.py") if path.stem != "report"
)
WITHOUT_TORCH = [
    "salmask", "salmask.params.run", "salmask.params.names", "salmask.stage_modules",
    "salmask.code_digests", "salmask.provenance", "salmask.lineage", "salmask.commands.cli",
    "salmask.commands.lineage", "salmask.datasets",
    "slurm.__main__", "stages.code", "stages.report",
]  # fmt: skip
HEAVY = ["torchvision", "timm", "matplotlib", "jinja2", "pycocotools", "submitit", "scipy"]


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [(WITHOUT_TORCH, ["torch", *HEAVY]), ([*STAGES, "salmask.commands.check"], HEAVY)],
    ids=["without torch", "stages"],
)
def test_heavy_libraries_are_imported_late(modules: list[str], heavy: list[str]) -> None:
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    loaded = [name for name in {heavy!r} if name in sys.modules]
    assert not loaded, f"{{module}} imports {{loaded}}"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
