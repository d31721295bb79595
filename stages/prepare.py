"""Images -> manifest: reads every file once, lists what is usable and what is not."""

import shutil
from pathlib import Path

import click

from salmask.config import Choice, Params, bind, check, pick
from salmask.data import manifest
from salmask.data.sources import SOURCES
from salmask.devices import pick_device
from salmask.files import write_json
from salmask.provenance import FILE_NAME, recipe, record
from stages.common import DATA, readable_errors


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/data: manifest.csv, rejected.csv, dataset.json (and the demo's images)."""
    params = Params.read()
    choice, seed = params.choice("data"), params.seed()
    options = dict(choice.options)
    max_rejected = check(options.pop("max_rejected", 0.05), float, "params.yaml: data.max_rejected")
    source = pick(SOURCES, choice, "params.yaml: data")
    bound = bind(source, Choice(choice.name, options), "params.yaml: data")

    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    listing = source(DATA.resolve(), seed, **bound)
    rejected = manifest.write(listing, choice.name, DATA.resolve(), max_rejected)
    made_by = recipe("prepare", "", params.reads, [], Path.cwd())
    # The manifest speaks for the images, one by one.
    write_json(DATA / FILE_NAME, record(made_by, DATA, pick_device(), pattern="*"))
    rows = manifest.load(DATA)
    counts = ", ".join(f"{len(rows.ids(split))} {split}" for split in rows.split_names())
    print(f"{choice.name}: {len(rows)} images ({counts}), {len(rows.classes)} classes")
    if rejected:
        print(f"{rejected} files were left out; reasons in {DATA}/rejected.csv")


if __name__ == "__main__":
    main()
