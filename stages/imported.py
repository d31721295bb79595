"""An encoder that others trained, of `imports:` -> an encoder as a pretraining leaves it."""

from pathlib import Path

import click

from salmask.devices import pick_device
from salmask.encoders import importing
from salmask.files import write_json
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, recipe, record
from salmask.stage_modules import stage_modules
from stages.errors import readable_errors
from stages.paths import PRETRAIN


@click.command()
@click.option("--name", required=True, help="A name under `imports` in params.yaml.")
@readable_errors
def main(name: str) -> None:
    """Writes artifacts/pretrain/<name>: encoder.safetensors, encoder.json."""
    params = Params.read()
    key = f"imports.{name}"
    wanted = params.section(key, importing.Import)
    found = importing.read(wanted, f"{params.source}: {key}")
    out = PRETRAIN / name
    importing.save(wanted, found, out)
    made_by = recipe(
        "imported",
        name,
        stage_modules(params, f"imported/{name}"),
        params.reads,
        [wanted.path],
        Path.cwd(),
    )
    write_json(out / FILE_NAME, record(made_by, out, pick_device()))
    left_out = f", without {', '.join(found.dropped)}" if found.dropped else ""
    print(f"{name}: {wanted.arch} of layout {found.layout}, sha256 {found.sha256[:12]}{left_out}")


if __name__ == "__main__":
    main()
