"""The provenance of what a stage makes."""

from collections.abc import Sequence
from pathlib import Path

from salmask.devices import pick_device
from salmask.files import write_json
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, Recipe, recipe, record
from salmask.stage_modules import stage_modules


def stage_recipe(
    params: Params, stage: str, name: str = "", inputs: Sequence[Path] = (), code: str = ""
) -> Recipe:
    """Everything that decides the result of a stage in the current project.

    Args:
        params: the parameters, after the stage has read its own.
        stage: as in `Recipe`.
        name: as in `Recipe`.
        inputs: paths relative to the project.
        code: the key of the stage's code (see `stage_modules`); `<stage>/<name>` by default.
    """
    key = code or (f"{stage}/{name}" if name else stage)
    return recipe(stage, name, stage_modules(params, key), params.reads, inputs, Path.cwd())


def write_provenance(made_by: Recipe, out: Path, pattern: str = "**/*") -> None:
    """Writes provenance.json for the files in `out` that match `pattern`."""
    write_json(out / FILE_NAME, record(made_by, out, pick_device(), pattern))
