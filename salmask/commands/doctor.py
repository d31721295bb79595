"""What stands in the way of a run, and what its first stages will cost, before they start."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from salmask.data.decode import decode, resample
from salmask.data.inspection import inspect
from salmask.data.prepare import Listing
from salmask.datasets.folder_fingerprint import unwatchable
from salmask.datasets.folders import is_folder
from salmask.datasets.registry import configured
from salmask.devices import autocast, pick_device, place
from salmask.encoders import importing
from salmask.errors import UserError
from salmask.findings import Finding
from salmask.params.names import import_names, run_names
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import bind, pick
from salmask.params.yaml_file import Params
from salmask.saliency import localizers
from salmask.saliency.localizers import Trunk
from salmask.saliency.scda import activation_map

_SAMPLE = 48  # files that are tried to estimate the rest
_MIN_FREE_GB = 10
_SHOWN = 3


def examine(params: Params, validate: Callable[[Params], None], root: Path) -> Iterator[Finding]:
    """Checks machine, parameters, data and weights, and measures on a few files what prepare and
    saliency will take. validate: raises UserError for params that do not fit. root: the project.
    """
    device = pick_device()
    yield from _machine(device, root)
    try:
        validate(params)
    except UserError as error:
        yield Finding("stop", str(error))
        return
    yield Finding("ok", f"{params.source}: {len(run_names(params))} runs, all sound")
    yield from _imports(params)
    with tempfile.TemporaryDirectory() as scratch:  # where the demo draws
        try:
            listing = configured(params.choice("data"), "data")[1](Path(scratch), params.seed())
        except UserError as error:
            yield Finding("stop", str(error))
            return
        usable: list[Path] = []
        yield from _data(listing, usable)
        yield from _watched(params.choice("data").options.get("root"))
        config = params.section("saliency", SaliencyConfig)
        try:
            trunk = _trunk(params)
        except UserError as error:
            yield Finding("stop", str(error))
            return
        yield Finding("ok", f"localizer {params.choice('localizer').name}: weights are there")
        if usable:
            yield _saliency(len(listing.files), usable, config, place(trunk, device), device)


def _imports(params: Params) -> Iterator[Finding]:
    for name in import_names(params):
        where = f"{params.source}: imports.{name}"
        try:
            wanted = params.section(f"imports.{name}", importing.Import)
            found = importing.read(wanted, where)
        except UserError as error:
            yield Finding("stop", str(error))
        else:
            yield Finding("ok", f"{where}: {wanted.arch} of layout {found.layout}")


def _machine(device: torch.device, root: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
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
    yield Finding(state, f"{free:.0f} GB free where {root} lies")


def _data(listing: Listing, usable: list[Path]) -> Iterator[Finding]:
    """Looks at a sample of the files; appends those that can be used to `usable`."""
    step = max(1, len(listing.files) // _SAMPLE)
    sample = [listing.root / found.path for found in listing.files[::step][:_SAMPLE]]
    start = time.perf_counter()
    refused = []
    for path in sample:
        reason = inspect(path).reason
        if reason:
            refused.append(f"{path.name}: {reason}")
        else:
            usable.append(path)
    each = (time.perf_counter() - start) / len(sample)
    classes = f"{len(listing.classes)} classes" if listing.classes else "no labels"
    yield Finding("ok", f"data: {len(listing.files)} files, {classes}")
    if refused:
        state: Literal["note", "stop"] = "note" if usable else "stop"
        yield Finding(
            state, f"{len(refused)} of {len(sample)} files tried are no images, as {refused[0]}"
        )
    yield Finding("ok", f"prepare: about {_spell(each * len(listing.files))} at most, once")


def _watched(root: Any) -> Iterator[Finding]:
    """Whether DVC can watch data.root, in which it reads every file."""
    if not isinstance(root, str) or not is_folder(Path(root)):
        return
    found = list(islice(unwatchable(Path(root)), _SHOWN))
    if found:
        told = "; ".join(f"{path}: {why}" for path, why in found)
        yield Finding(
            "stop",
            f"DVC cannot watch {root} ({told}): remove these, or run `salmask watch {root} "
            "images.json` and name that file as data.root",
        )


def _trunk(params: Params) -> Trunk:
    choice = params.choice("localizer")
    find = pick(localizers.LOCALIZERS, choice, "localizer")
    spec, tensors = find(**bind(find, choice, "localizer"))
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    return trunk


def _saliency(
    images: int, sample: list[Path], config: SaliencyConfig, trunk: Trunk, device: torch.device
) -> Finding:
    """Times decoding and one batch a level; on the CPU the two share the cores."""
    start = time.perf_counter()
    pictures = [decode(path, max(config.levels)) for path in sample]
    squashed = {n: _batch(pictures, n, config.batch) for n in config.levels}
    decoding = (time.perf_counter() - start) / len(sample)
    forward, grids = {}, {}
    for level, pixels in squashed.items():
        work = partial(_maps, trunk, pixels, config, device)
        grids[level] = work().shape[1:].numel()  # warms up
        start = time.perf_counter()
        work()
        forward[level] = (time.perf_counter() - start) / config.batch
    cores = len(os.sched_getaffinity(0))
    each, decoding = sum(forward.values()), decoding / cores
    each = max(each, decoding) if device.type == "cuda" else each + decoding
    total = images * each + config.correction * forward[min(forward)]
    size = images * sum(2 * cells + 4 for cells in grids.values()) + 32 * images
    limit = "decoding" if decoding > sum(forward.values()) else "the localizer"
    return Finding(
        "ok",
        f"saliency: about {_spell(total)} ({1 / each:.3g} images/s, most of it {limit}) and "
        f"{size / 2**20:.1f} MB, once",
    )


def _batch(pictures: list[Image.Image], level: int, size: int) -> Tensor:
    squashed = [resample(picture, (level, level)) for picture in pictures]
    return torch.stack([squashed[i % len(squashed)] for i in range(size)])


@torch.inference_mode()
def _maps(trunk: Trunk, pixels: Tensor, config: SaliencyConfig, device: torch.device) -> Tensor:
    images = pixels.to(device).float() / 255
    with autocast(device, config.precision):
        return activation_map(trunk(images.contiguous(memory_format=torch.channels_last))).cpu()


def _spell(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
