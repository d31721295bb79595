"""The house rules of the layout, checked on the import graph."""

import ast
from pathlib import Path

import pytest

from salmask.code_digests import imported_modules

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("salmask", "stages", "slurm") for p in (ROOT / top).rglob("*.py"))

# Lower layers first: a module may import from its own layer and from those before it.
LAYERS = [
    ["salmask", "salmask.artifacts", "salmask.by_name", "salmask.shapes", "salmask.errors",
     "salmask.progress",
     "salmask.devices", "salmask.files", "salmask.randomness", "salmask.filters", "salmask.job",
     "salmask.memory", "salmask.pieces", "salmask.temporary_folder", "salmask.stop_signals",
     "salmask.threads",
     "salmask.distributed", "salmask.losses", "salmask.findings", "salmask.stored_files",
     "salmask.collapse"],
    ["salmask.params", "salmask.code_digests", "salmask.provenance", "salmask.lineage",
     "salmask.dvc_lock", "salmask.stage_modules"],
    ["salmask.datasets"],
    ["salmask.data"],
    ["salmask.encoders"],
    ["salmask.saliency"],
    ["salmask.masks", "salmask.frameworks"],
    ["salmask.train"],
    ["salmask.evaluate", "salmask.detection"],
    ["salmask.report"],
    ["slurm"],
    ["salmask.commands"],
    ["stages"],
]  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    exact = [i for i, layer in enumerate(LAYERS) if module in layer]
    if exact:
        return exact[0]
    return next(i for i, layer in enumerate(LAYERS) for e in layer if module.startswith(e + ".")
                and e != "salmask")  # fmt: skip


def top_level_imports(path: Path) -> set[str]:
    packages: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_only_look_down(path: Path) -> None:
    name = module_name(path)
    here = layer_of(name)
    if name == "salmask" or here == len(LAYERS) - 1:
        return  # the public names are imported lazily; nothing imports stages
    for imported in imported_modules(path, ROOT) | slurm_imports(path):
        assert layer_of(imported) <= here, f"{name} reaches up to {imported}"


def slurm_imports(path: Path) -> set[str]:
    return {m for m in top_level_imports(path) if m in ("slurm", "stages")}


def test_the_library_imports_no_pipeline_tools() -> None:
    for path in SOURCES:
        if module_name(path).startswith("salmask") and "commands" not in path.parts:
            assert not top_level_imports(path) & {"dvc", "click", "submitit", "slurm", "stages"}


def test_only_the_store_imports_zarr() -> None:
    users = [module_name(p) for p in SOURCES if "zarr" in top_level_imports(p)]
    assert users == ["salmask.saliency.store"]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_small_and_say_their_purpose(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    assert not text or ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"


def test_no_unsafe_loading() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert safe.get("weights_only") == "True", f"{path}:{node.lineno}"
