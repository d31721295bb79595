"""`salmask prune`: what may be removed from the folder of all runs, and how much space it takes."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from salmask.errors import UserError
from slurm import follow
from slurm.folder import features_folder, packs_folder, read_job_json, runs_folder

KINDS = {
    "features": "features that evaluations share; they are computed again when they are needed",
    "packs": "copies of images that `data.pack` made; without them, stages read the image files",
    "unfinished": "runs that stopped and could be resumed; they would start from the beginning",
    "superseded": "runs whose stage finished later with other parameters, inputs or code",
}


@dataclass(frozen=True)
class Leftover:
    """A folder that may be removed.

    Args:
        kind: a key of KINDS.
        path: the folder.
        size: bytes.
    """

    kind: str
    path: Path
    size: int


def leftovers(runs: Path) -> list[Leftover]:
    """All folders that may be removed, sorted by kind. Those in use are left out.

    The newest finished run of each stage and name is kept: `dvc repro` may still publish it.

    Args:
        runs: the folder of all runs.
    """
    features = features_folder(runs)
    keys = sorted(features.glob("*/key.json")) if features else []
    entries = [("features", file.parent) for file in keys]
    entries += [("packs", folder) for folder in sorted(packs_folder(runs).glob("*/"))]
    finished: dict[str, list[Path]] = {}
    for file in sorted(runs.glob("*/job.json")):
        folder = file.parent
        if (folder / "DONE").is_file():
            finished.setdefault(folder.name.rpartition("-")[0], []).append(folder)
        else:
            entries.append(("unfinished", folder))
    for folders in finished.values():
        folders.sort(key=lambda folder: (folder / "DONE").stat().st_mtime)
        entries += [("superseded", folder) for folder in folders[:-1]]
    order = list(KINDS)
    entries.sort(key=lambda entry: (order.index(entry[0]), entry[1]))
    return [Leftover(kind, path, _size(path)) for kind, path in entries if not _is_used(path)]


def prune(root: Path, kinds: Sequence[str], remove: bool) -> Iterator[str]:
    """Lists what may be removed, and removes it if asked to. Yields lines for the user.

    Args:
        root: the folder of the project.
        kinds: keys of KINDS; none for all.
        remove: whether to remove the folders.

    Raises:
        UserError: for an unknown kind, and for a removal without kinds.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
    if remove and not kinds:
        raise UserError(f"name what to remove: {', '.join(KINDS)}")
    runs = runs_folder(root)
    chosen = [each for each in leftovers(runs) if not kinds or each.kind in kinds]
    for each in chosen:
        yield f"{each.kind:10}  {each.size / 1e6:12,.1f} MB  {each.path}"
        if remove:
            shutil.rmtree(each.path)
    for kind in dict.fromkeys(each.kind for each in chosen):
        size = sum(each.size for each in chosen if each.kind == kind)
        count = sum(1 for each in chosen if each.kind == kind)
        yield f"{kind}: {count} folders, {size / 1e9:,.2f} GB: {KINDS[kind]}"
    if not chosen:
        yield f"nothing to remove in {runs}"
    elif not remove:
        yield "nothing was removed; add --remove and the names of the kinds to remove them"


def _size(folder: Path) -> int:
    """The bytes of all files. A file with several names counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _is_used(folder: Path) -> bool:
    """Whether a process holds one of the folder's locks, or a job of the run waits or runs."""
    for lock in folder.glob("*lock*"):
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    metadata, fingerprint = read_job_json(folder), folder.name.rpartition("-")[2]
    executor = metadata.get("executor")
    return bool(executor and follow.active_jobs(folder, fingerprint, executor))
