"""Converts a checkpoint of `imports:` into an encoder like those of pretraining."""

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
    config = params.section(key, importing.Import)
    imported = importing.read(config, f"{params.source}: {key}")
    out = PRETRAIN / name
    importing.save(config, imported, out)
    made_by = recipe(
        "imported",
        name,
        stage_modules(params, f"imported/{name}"),
        params.reads,
        [config.path],
        Path.cwd(),
    )
    write_json(out / FILE_NAME, record(made_by, out, pick_device()))
    dropped = f", without {', '.join(imported.dropped)}" if imported.dropped else ""
    print(
        f"{name}: {config.arch}, layout {imported.layout}, sha256 {imported.sha256[:12]}{dropped}"
    )


if __name__ == "__main__":
    main()
