"""Locates and checks the weights of the localizer, and stores them under our names."""

import click

from salmask.artifacts import LOCALIZER
from salmask.params.values import bind, pick
from salmask.params.yaml_file import Params
from salmask.saliency import stored_localizer
from salmask.saliency.localizers import LOCALIZERS
from stages.errors import Stage
from stages.provenance import stage_recipe, write_provenance


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/localizer: weights.safetensors and localizer.json."""
    params = Params.read()
    choice = params.choice("localizer")
    made_by = stage_recipe(params, "localizer")
    function = pick(LOCALIZERS, choice.name, "params.yaml: localizer.name")
    localizer, tensors = function(**bind(function, choice.options, "params.yaml: localizer"))
    stored_localizer.save(localizer, tensors, LOCALIZER)
    write_provenance(made_by, LOCALIZER)
    print(
        f"localizer {localizer.name}: {localizer.arch}, {len(tensors)} tensors, "
        f"sha256 {localizer.source[:12]}"
    )


if __name__ == "__main__":
    main()
