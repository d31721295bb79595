"""The common part of the stages `prepare` and `transfer_data`; not a stage itself."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from salmask.code_digests import code_digest
from salmask.data import columns, location, pack
from salmask.data.prepare import write_manifest
from salmask.datasets.reader import dataset_reader
from salmask.files import file_digest, value_digest
from salmask.params.yaml_file import Params
from slurm.folder import locked, packs_folder, runs_folder
from stages.provenance import alone, stage_recipe, write_provenance


def prepare_dataset(stage: str, section: str, name: str, out: Path) -> None:
    """Writes the manifest of a data set and its provenance.

    Args:
        stage: name of the stage.
        section: dotted key of the data set in params.yaml.
        name: of the data set in `transfer`; "" for `data`.
        out: folder of the artifact, which is replaced.
    """
    params = Params.read()
    choice, seed = params.choice(section), params.seed()
    made_by = stage_recipe(params, stage, name)
    policy, read = dataset_reader(choice, f"params.yaml: {section}")
    with alone(made_by):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        folder = out.resolve()
        listing = read(folder, seed)
        written_here = listing.root.is_relative_to(folder)
        cache = None if written_here else _cache_file(listing.root)
        label = name or choice.name
        write_manifest(listing, label, folder, policy.max_rejected, policy.min_side, cache)
        if policy.pack:
            _pack(listing.root, folder)
        # Not the images: the manifest contains the digest of each.
        write_provenance(made_by, out, pattern="*")
        _print_summary(label, out)


def _pack(root: Path, folder: Path) -> None:
    """Copies the images of the manifest in `folder` into a pack, and records where it is."""
    digest = file_digest(folder / "manifest.csv")
    rows = columns.read(folder, digest)
    pack_folder = packs_folder(runs_folder(Path.cwd())) / digest[:16]
    pack_folder.mkdir(parents=True, exist_ok=True)
    with locked(pack_folder):
        pack.write(pack_folder, root, rows.paths, rows.sha256, digest)
    location.save(root, folder, Path.cwd(), pack_folder)


def _print_summary(label: str, out: Path) -> None:
    dataset = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    images = dataset["images"]
    counts = ", ".join(f"{count} {split}" for split, count in images.items())
    print(f"{label}: {sum(images.values())} images ({counts}), {len(dataset['classes'])} classes")
    if dataset["rejected"]:
        print(f"{dataset['rejected']} files were rejected; the reasons are in {out}/rejected.csv")
    for note in dataset["notes"]:
        print(f"note: {note}")


def _cache_file(root: Path) -> Path:
    """The cache of inspections of the files below `root`.

    It is outside DVC's outputs, which DVC deletes before a stage runs. A change of the code of
    the inspection, of its messages (they are reasons in rejected.csv) or of pillow's version leads
    to another file.
    """
    code = code_digest(["salmask.data.inspection"], Path.cwd(), messages=True)
    key = value_digest([str(root), code, version("pillow")])[:12]
    return runs_folder(Path.cwd()) / f"prepare-{key}" / "inspections.sqlite"
