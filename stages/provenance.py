"""The provenance of what a stage makes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from salmask.devices import pick_device
from salmask.errors import UserError
from salmask.files import write_json
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, Recipe, changed_files, changed_params, recipe, record
from salmask.stage_modules import stage_modules
from slurm.errors import named_folder_errors
from slurm.folder import locked, runs_folder


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
    """Writes provenance.json for the files in `out` that match `pattern`.

    Raises UserError if parameters, inputs or code differ from those of the recipe: DVC reads them
    when a stage has ended, and would record the new ones for these files.
    """
    project = Path.cwd()
    changed = [f"params.yaml: {key}" for key in changed_params(made_by, project)]
    changed += changed_files(made_by, project, project)
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed while the stage {made_by.stage} ran: "
            "run `dvc repro` again"
        )
    write_json(out / FILE_NAME, record(made_by, out, pick_device(), pattern))


@contextmanager
def alone(made_by: Recipe) -> Iterator[None]:
    """Waits until no other process writes the output of this stage. The next one waits then.

    The lock lies in the folder of all runs, because DVC empties the output folders of stages.
    """
    runs = runs_folder(Path.cwd())
    name = "-".join(filter(None, [made_by.stage, made_by.name]))
    with ExitStack() as stack:
        with named_folder_errors(runs):
            runs.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(runs, f"{name}.lock"))
        yield
