"""`salmask doctor`: checks before a run, and a cost estimate of the stages prepare and saliency."""

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from salmask.commands.check import read_import, validate
from salmask.data.decode import decode
from salmask.data.free_memory import SHARED_MEMORY
from salmask.data.inspection import inspect
from salmask.data.resample import resample
from salmask.data.views import BRANCHES
from salmask.data.worker_processes import fit_into_shared_memory
from salmask.datasets import Listing
from salmask.datasets.folder_fingerprint import untrackable
from salmask.datasets.folders import is_folder
from salmask.datasets.reader import dataset_reader
from salmask.devices import pick_device, place
from salmask.dvc_lock import read_lock, remove_empty_lock
from salmask.encoders import importing
from salmask.errors import UserError
from salmask.findings import Finding
from salmask.lineage import ARTIFACTS
from salmask.params.mistakes import full_message
from salmask.params.names import import_names, run_names
from salmask.params.run import read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import bind, pick
from salmask.params.yaml_file import Params
from salmask.provenance import find_root
from salmask.saliency.localizers import LOCALIZERS
from salmask.saliency.maps import score_batch
from salmask.saliency.trunks import Trunk

_SAMPLE = 48  # files that are read to estimate the time for all files
_MIN_FREE_GB = 10
_MAX_LISTED = 3  # files that DVC cannot watch


def examine_project() -> Iterator[Finding]:
    """Yields the findings about the project in the current folder, and about its cluster.

    Raises:
        UserError: if there is no project, or params.yaml cannot be read.
    """
    root = find_root()
    params, device = Params.read(root / "params.yaml"), pick_device()
    with contextlib.chdir(root):  # as for the stages: data.root may be relative
        for findings in (
            _machine(device, root),
            _outputs(root),
            _project(params, device),
            _cluster(params, root),
        ):
            try:
                yield from findings
            except UserError as error:  # nothing further can be examined
                yield Finding("stop", full_message(error))


def _project(params: Params, device: torch.device) -> Iterator[Finding]:
    """Yields the findings about the parameters, the data and the weights.

    Measures on a few files how long the stages prepare and saliency will take.
    """
    validate(params)
    yield Finding("ok", f"{params.source}: {len(run_names(params))} runs, all valid")
    yield from _imports(params)
    yield from _demo_data(params)
    with tempfile.TemporaryDirectory() as scratch:  # the demo draws its images there
        policy, read = dataset_reader(params.choice("data"), "data")
        listing = read(Path(scratch), params.seed())
        usable: list[Path] = []
        yield from _data(listing, usable)
        if policy.pack and usable:
            yield _pack(len(listing.files), usable)
        yield from _dvc(params.choice("data").options.get("root"))
        choice = params.choice("localizer")
        localizer = pick(LOCALIZERS, choice.name, "localizer.name")
        spec, tensors = localizer(**bind(localizer, choice.options, "localizer"))
        yield Finding("ok", f"localizer {choice.name}: its weights are present")
        trunk = Trunk(spec)
        trunk.layers.load_state_dict(tensors)
        config = params.section("saliency", SaliencyConfig)
        if usable:
            yield _saliency(len(listing.files), usable, config, place(trunk, device), device)


def _demo_data(params: Params) -> Iterator[Finding]:
    """Yields a finding if evaluations on drawings of the demo are on, and the images are others."""
    if params.choice("data").name == "demo":
        return
    chosen = params.section("evaluate.chosen", dict[str, list[str]])
    sections = [("transfer", params.value("transfer")), ("detect", params.value("detect"))]
    names = [
        f"{kind}.{name}"
        for kind, entries in sections
        for name, entry in (entries or {}).items()
        if chosen.get(kind) and entry.get("data", entry).get("name") == "demo"
    ]
    if names:
        yield Finding(
            "note",
            f"{' and '.join(names)} are drawings of the demo, but data is not: empty "
            "evaluate.chosen.transfer and evaluate.chosen.detect to leave them out",
        )


def _cluster(params: Params, root: Path) -> Iterator[Finding]:
    sys.path.insert(0, str(root))  # a project has a `slurm` package of its own
    from slurm import doctor
    from slurm.profile import read_profile

    profile = read_profile()
    if profile.executor != "slurm":  # a job looks at the shared memory of its own node
        yield from _shared_memory(params, profile.cores())
    yield from doctor.examine_profile(profile)


def _shared_memory(params: Params, workers: int) -> Iterator[Finding]:
    """Yields a finding if the shared memory is too small for the largest batches."""
    try:
        saliency = params.section("saliency", SaliencyConfig)
        runs = [read_run(params, name) for name in run_names(params)]
    except UserError:
        return  # it is reported with the parameters
    sizes = {"saliency.batch": 3 * sum(side**2 for side in saliency.levels) * saliency.batch}
    for run in runs:
        if run.train.images != "resident":
            views = len(BRANCHES) * run.train.batch
            sizes[f"train.batch of {run.name}"] = 3 * run.view.size**2 * views
    where = max(sizes, key=lambda name: sizes[name])
    try:
        count, _ = fit_into_shared_memory(sizes[where], workers)
    except UserError as error:
        yield Finding("stop", f"{where}: {error}")
        return
    if count < workers:
        yield Finding(
            "note",
            f"{where}: the free shared memory ({SHARED_MEMORY}) holds the batches of {count} of "
            f"{workers} worker processes. More of it makes decoding faster (docker run --shm-size)",
        )


def _imports(params: Params) -> Iterator[Finding]:
    for name in import_names(params):
        config, where = read_import(params, name)
        try:
            layout = importing.read(config, where).layout
        except UserError as error:
            yield Finding("stop", str(error))
        else:
            yield Finding("ok", f"{where}: {config.arch} of layout {layout}")


def _machine(device: torch.device, root: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    yield Finding(
        "ok",
        f"Python {platform.python_version()}, torch {torch.__version__}; {cores} cores, "
        f"{memory:.0f} GB of memory",
    )
    if device.type == "cuda":
        yield Finding("ok", f"GPU: {torch.cuda.get_device_name(device)}")
    else:
        yield Finding("note", f"no GPU: everything runs on the {device.type.upper()}")
    free = shutil.disk_usage(root).free / 2**30
    state: Literal["ok", "note"] = "ok" if free > _MIN_FREE_GB else "note"
    yield Finding(state, f"{free:.0f} GB free on the disk of {root}")


def _outputs(root: Path) -> Iterator[Finding]:
    """Yields a finding if DVC cannot record or read outputs of stages."""
    if (root / ARTIFACTS).is_symlink():
        target = (root / ARTIFACTS).readlink()
        yield Finding(
            "stop",
            f"{ARTIFACTS}/ is a link to {target}: DVC refuses outputs behind a link. Use a folder, "
            "and put DVC's cache on the other disk with `dvc cache dir`",
        )
    try:
        if removed := remove_empty_lock(root):
            yield Finding("note", removed)
        read_lock(root)
    except UserError as error:
        yield Finding("stop", str(error))


def _data(listing: Listing, usable: list[Path]) -> Iterator[Finding]:
    """Reads a sample of the files, and appends those that are images to `usable`."""
    step = max(1, len(listing.files) // _SAMPLE)
    sample = [listing.root / file.path for file in listing.files[::step][:_SAMPLE]]
    start = time.perf_counter()
    rejected = []
    for path in sample:
        reason = inspect(path).reason
        if reason:
            rejected.append(f"{path.name}: {reason}")
        else:
            usable.append(path)
    seconds = (time.perf_counter() - start) / len(sample)
    classes = f"{len(listing.classes)} classes" if listing.classes else "no labels"
    yield Finding("ok", f"data: {len(listing.files)} files, {classes}")
    if rejected:
        state: Literal["note", "stop"] = "note" if usable else "stop"
        yield Finding(
            state,
            f"data: {len(rejected)} of {len(sample)} sampled files are not images, for example "
            f"{rejected[0]}",
        )
    yield Finding("ok", f"prepare: at most about {_duration(seconds * len(listing.files))}, once")


def _pack(files: int, sample: list[Path]) -> Finding:
    """The size of the pack of all files, estimated from a sample, and whether the disk has room."""
    root = find_root()
    sys.path.insert(0, str(root))  # a project has a `slurm` package of its own
    from slurm.folder import runs_folder

    size = files * sum(path.stat().st_size for path in sample) / len(sample)
    runs = runs_folder(root)
    disk = next(folder for folder in (runs, *runs.parents) if folder.is_dir())
    free = shutil.disk_usage(disk).free
    text = f"data.pack: about {size / 1e9:,.1f} GB in {runs}, once"
    if size > free:
        return Finding("stop", f"{text}, but {free / 1e9:,.1f} GB are free: set SALMASK_RUNS")
    return Finding("ok", text)


def _dvc(root: Any) -> Iterator[Finding]:
    """Yields a finding if DVC cannot watch data.root. DVC reads every file below it."""
    if not isinstance(root, str) or not is_folder(Path(root)):
        return
    problems = list(islice(untrackable(Path(root)), _MAX_LISTED))
    if problems:
        files = "; ".join(f"{path}: {reason}" for path, reason in problems)
        yield Finding(
            "stop",
            f"DVC cannot watch {root} ({files}): remove these files, or run `salmask "
            f"fingerprint-folder {root} images.json` and set data.root to images.json",
        )


def _saliency(
    images: int, sample: list[Path], config: SaliencyConfig, trunk: Trunk, device: torch.device
) -> Finding:
    """Measures decoding and one batch per level. On a CPU the two share the cores."""
    start = time.perf_counter()
    decoded = [decode(path, max(config.levels)) for path in sample]
    pixels = {
        level: torch.stack([resample(image, (level, level)) for image in decoded])
        for level in config.levels
    }
    decoding = (time.perf_counter() - start) / len(sample)
    forward, cells = {}, {}
    for level, whole in pixels.items():
        score = partial(score_batch, trunk, whole[: config.batch], config, device)
        cells[level] = score().cpu().shape[1:].numel()  # the first call also warms up
        start = time.perf_counter()
        score().cpu()
        forward[level] = (time.perf_counter() - start) / config.batch
    cores = len(os.sched_getaffinity(0))
    scoring, decoding = sum(forward.values()), decoding / cores
    seconds = max(scoring, decoding) if device.type == "cuda" else scoring + decoding
    total = images * seconds + config.correction * forward[min(forward)]
    size = images * sum(2 * count + 4 for count in cells.values()) + 32 * images
    slowest = "decoding" if decoding > scoring else "the localizer"
    return Finding(
        "ok",
        f"saliency: about {_duration(total)} ({1 / seconds:.3g} images/s, limited by {slowest}) "
        f"and {size / 2**20:.1f} MB, once",
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
