"""The annotated images of one set of `detect:`, read and checked once -> what detection reads."""

import shutil
from pathlib import Path

import click

from salmask.detection import datasets as sources
from salmask.detection import prepared_files as stored
from salmask.detection.protocol import Sets
from salmask.devices import pick_device
from salmask.errors import UserError
from salmask.files import write_json
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, recipe, record
from salmask.stage_modules import stage_modules
from stages.errors import readable_errors
from stages.paths import DETECT


@click.command()
@click.option("--name", required=True, help="A name under `detect` in params.yaml.")
@readable_errors
def main(name: str) -> None:
    """Writes artifacts/detect/<name>: dataset.json, pictures.jsonl, skipped.csv."""
    params, key = Params.read(), f"detect.{name}"
    where = f"{params.source}: {key}"
    source, _ = sources.configured(params.choice(key), where)
    out = DETECT / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        root, train, test = source(out.resolve(), params.seed())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    about = stored.save(Sets(name, train, test), root, out)
    made_by = recipe(
        "detect_data",
        name,
        stage_modules(params, f"detect_data/{name}"),
        params.reads,
        [],
        Path.cwd(),
    )
    write_json(out / FILE_NAME, record(made_by, out, pick_device(), pattern="*"))
    counts = (f"{about['images'][s]} {s} ({about['objects'][s]} objects)" for s in about["images"])
    masks = "" if about["masks"] else ", no masks"
    print(f"{name}: {', '.join(counts)} images, {len(train.classes)} classes{masks}")
    if about["skipped"]:
        print(f"{about['skipped']} problems; {out}/skipped.csv tells what was left out or cut")
    for note in about["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
