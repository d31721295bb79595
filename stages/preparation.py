"""What the stages that read a folder of images share: from a section of params to a manifest."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from salmask.code_digests import code_digest
from salmask.data import manifest
from salmask.data import prepare as preparation
from salmask.datasets.reader import dataset_reader
from salmask.devices import pick_device
from salmask.files import write_json
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, recipe, record, value_digest
from salmask.stage_modules import stage_modules
from slurm.folder import runs_folder


def prepare(stage: str, key: str, name: str, out: Path) -> None:
    """Reads the images that the section `key` of params.yaml describes and writes their manifest
    to `out`. name: which of the stage's; "" for the only one, called as its source is."""
    params = Params.read()
    choice, seed = params.choice(key), params.seed()
    policy, source = dataset_reader(choice, f"params.yaml: {key}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    there = out.resolve()
    listing = source(there, seed)
    drawn_here = listing.root.is_relative_to(there)
    memory = None if drawn_here else _memory(listing.root)
    called = name or choice.name
    preparation.write(listing, called, there, policy.max_rejected, policy.min_side, memory)
    made_by = recipe(
        stage,
        name,
        stage_modules(params, f"{stage}/{name}" if name else stage),
        params.reads,
        [],
        Path.cwd(),
    )
    # The manifest speaks for the images, one by one.
    write_json(out / FILE_NAME, record(made_by, out, pick_device(), pattern="*"))
    rows = manifest.load(out)
    counts = ", ".join(f"{len(rows.ids(split))} {split}" for split in rows.split_names())
    print(f"{called}: {len(rows)} images ({counts}), {len(rows.classes)} classes")
    dataset = json.loads((out / "dataset.json").read_text())
    if dataset["rejected"]:
        print(f"{dataset['rejected']} files were left out; reasons in {out}/rejected.csv")
    for note in dataset["notes"]:
        print(f"note: {note}")


def _memory(root: Path) -> Path:
    """Where what is known of the files below `root` outlives DVC's deletion of outputs; another
    place once our code or pillow judges them anew."""
    judge = code_digest(["salmask.data.inspection"], Path.cwd())
    key = value_digest([str(root), judge, version("pillow")])[:12]
    return runs_folder(Path.cwd()) / f"prepare-{key}" / "seen.sqlite"
