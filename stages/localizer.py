"""Weights of the frozen network that says where objects are: found, checked, in one layout."""

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
    find = pick(LOCALIZERS, choice, "params.yaml: localizer")
    spec, tensors = find(**bind(find, choice, "params.yaml: localizer"))
    stored_localizer.save(spec, tensors, LOCALIZER)
    made_by = recipe(
        "localizer", "", stage_modules(params, "localizer"), params.reads, [], Path.cwd()
    )
    write_json(LOCALIZER / FILE_NAME, record(made_by, LOCALIZER, pick_device()))
    print(f"localizer {spec.name}: {spec.arch}, {len(tensors)} tensors, sha256 {spec.source[:12]}")


if __name__ == "__main__":
    main()
