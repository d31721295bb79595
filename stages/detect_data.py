"""Reads and checks the annotated images of one set of `detect`, once for all detectors."""

import shutil

import click

from salmask.artifacts import DETECT
from salmask.detection import prepared_files
from salmask.detection.datasets import configured_reader
from salmask.detection.objects import DetectionData
from salmask.errors import UserError
from salmask.params.yaml_file import Params
from stages.errors import Stage
from stages.provenance import alone, stage_recipe, write_provenance


@click.command(cls=Stage)
@click.option("--name", required=True, help="A name under `detect` in params.yaml.")
def main(name: str) -> None:
    """Writes artifacts/detect/<name>: dataset.json, pictures.jsonl, skipped.csv."""
    params, key = Params.read(), f"detect.{name}.data"
    seed = params.seed()
    read = configured_reader(params.choice(key), f"{params.source}: {key}")
    made_by = stage_recipe(params, "detect_data", name)
    out = DETECT / name
    with alone(made_by):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            root, train, test = read(out.resolve(), seed)
        except UserError as error:
            raise UserError(f"{params.source}: {key}: {error}") from None
        metadata = prepared_files.save(DetectionData(name, train, test), root, out)
        write_provenance(made_by, out, pattern="*")
    counts = [
        f"{images} {split} images ({metadata['objects'][split]} objects)"
        for split, images in metadata["images"].items()
    ]
    masks = "with masks" if metadata["masks"] else "no masks"
    print(f"{name}: {', '.join(counts)}, {len(train.classes)} classes, {masks}")
    if metadata["skipped"]:
        print(f"{metadata['skipped']} images and objects left out or clipped: {out}/skipped.csv")
    for note in metadata["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
