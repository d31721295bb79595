"""Locates and checks the weights of the localizer, and stores them under our names."""

from pathlib import Path

import click

from salmask.devices import pick_device
from salmask.files import write_json
from salmask.params.values import bind, pick
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, recipe, record
from salmask.saliency import stored_localizer
from salmask.saliency.localizers import LOCALIZERS
from salmask.stage_modules import stage_modules
from stages.errors import readable_errors
from stages.paths import LOCALIZER


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/localizer: weights.safetensors and localizer.json."""
    params = Params.read()
    choice = params.choice("localizer")
    function = pick(LOCALIZERS, choice, "params.yaml: localizer")
    localizer, tensors = function(**bind(function, choice, "params.yaml: localizer"))
    stored_localizer.save(localizer, tensors, LOCALIZER)
    made_by = recipe(
        "localizer", "", stage_modules(params, "localizer"), params.reads, [], Path.cwd()
    )
    write_json(LOCALIZER / FILE_NAME, record(made_by, LOCALIZER, pick_device()))
    print(
        f"localizer {localizer.name}: {localizer.arch}, {len(tensors)} tensors, "
        f"sha256 {localizer.source[:12]}"
    )


if __name__ == "__main__":
    main()
