"""Converts a checkpoint of `imports:` into an encoder like those of pretraining."""

import click

from salmask.artifacts import PRETRAIN
from salmask.encoders import importing
from salmask.params.yaml_file import Params
from stages.errors import Stage
from stages.provenance import stage_recipe, write_provenance


@click.command(cls=Stage)
@click.option("--name", required=True, help="A name under `imports` in params.yaml.")
def main(name: str) -> None:
    """Writes artifacts/pretrain/<name>: encoder.safetensors, encoder.json."""
    params = Params.read()
    key = f"imports.{name}"
    config = params.section(key, importing.Import)
    imported = importing.read(config, f"{params.source}: {key}")
    out = PRETRAIN / name
    importing.save(config, imported, out)
    write_provenance(stage_recipe(params, "imported", name, [config.path]), out)
    dropped = f", without {', '.join(imported.dropped)}" if imported.dropped else ""
    print(
        f"{name}: {config.arch}, layout {imported.layout}, sha256 {imported.sha256[:12]}{dropped}"
    )


if __name__ == "__main__":
    main()
