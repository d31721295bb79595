"""Images -> manifest: reads every new file once, lists what is usable and what is not."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import click

from salmask.config import Params
from salmask.data import manifest, preparation
from salmask.data.sources import configured
from salmask.devices import pick_device
from salmask.files import write_json
from salmask.provenance import FILE_NAME, code_digest, recipe, record, value_digest
from slurm.launch import runs_folder
from stages.common import DATA, readable_errors


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/data: manifest.csv, rejected.csv, duplicates.csv, dataset.json (and the
    demo's images)."""
    params = Params.read()
    choice, seed = params.choice("data"), params.seed()
    policy, source = configured(choice, "params.yaml: data")

    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    out = DATA.resolve()
    listing = source(out, seed)
    drawn_here = listing.root.is_relative_to(out)
    memory = None if drawn_here else _memory(listing.root)
    preparation.write(listing, choice.name, out, policy.max_rejected, policy.min_side, memory)
    made_by = recipe("prepare", "", params.reads, [], Path.cwd())
    # The manifest speaks for the images, one by one.
    write_json(DATA / FILE_NAME, record(made_by, DATA, pick_device(), pattern="*"))
    rows = manifest.load(DATA)
    counts = ", ".join(f"{len(rows.ids(split))} {split}" for split in rows.split_names())
    print(f"{choice.name}: {len(rows)} images ({counts}), {len(rows.classes)} classes")
    dataset = json.loads((DATA / "dataset.json").read_text())
    if dataset["rejected"]:
        print(f"{dataset['rejected']} files were left out; reasons in {DATA}/rejected.csv")
    for note in dataset["notes"]:
        print(f"note: {note}")


def _memory(root: Path) -> Path:
    """Where what is known of the files below `root` outlives DVC's deletion of outputs; another
    place once our code or pillow judges them anew."""
    judge = code_digest("salmask.data.inspection", Path.cwd())
    key = value_digest([str(root), judge, version("pillow")])[:12]
    return runs_folder(Path.cwd()) / f"prepare-{key}" / "seen.sqlite"


if __name__ == "__main__":
    main()
