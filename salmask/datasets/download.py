"""Downloads, when a person asks for one: torchvision knows the places and the md5 of every archive.

Everything is got and unpacked in a folder of its own, and moved to its place once it is whole.
"""

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torchvision import datasets

from salmask.datasets.layout import KNOWN, wanted
from salmask.errors import UserError

_BROKEN = (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Download:
    """get: downloads into a folder and unpacks there. makes: what of it is kept, relative to the
    folder. gigabytes: of the archives, about. needs: packages."""

    get: Callable[[Path], object]
    makes: tuple[str, ...]
    gigabytes: float
    needs: tuple[str, ...] = ()


def _imagenette(size: str) -> Callable[[Path], object]:
    return lambda to: datasets.Imagenette(to, size=size, download=True)


def _voc(year: str, *parts: str) -> Callable[[Path], object]:
    return lambda to: [datasets.VOCDetection(to, year, part, download=True) for part in parts]


DOWNLOADS = {
    "imagenette": Download(_imagenette("full"), ("imagenette2",), 1.6),
    "imagenette-320": Download(_imagenette("320px"), ("imagenette2-320",), 0.35),
    "imagenette-160": Download(_imagenette("160px"), ("imagenette2-160",), 0.1),
    "cifar10": Download(
        lambda to: datasets.CIFAR10(to, download=True), ("cifar-10-batches-py",), 0.2
    ),
    "cifar100": Download(
        lambda to: datasets.CIFAR100(to, download=True), ("cifar-100-python",), 0.2
    ),
    "stl10": Download(lambda to: datasets.STL10(to, download=True), ("stl10_binary",), 2.7),
    "caltech101": Download(
        lambda to: datasets.Caltech101(to, download=True), ("caltech101/101_ObjectCategories",), 0.2
    ),
    "flowers102": Download(
        lambda to: datasets.Flowers102(to, download=True),
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        0.4,
        needs=("scipy",),
    ),
    "inat2018": Download(
        lambda to: datasets.INaturalist(to, "2018", download=True), ("2018",), 120
    ),
    "voc2007": Download(_voc("2007", "trainval", "test"), ("VOCdevkit/VOC2007",), 1),
    "voc2012": Download(_voc("2012", "trainval"), ("VOCdevkit/VOC2012",), 2),
}


def fetch(name: str, folder: Path) -> str:
    """Downloads the data set `name` into a folder, unless it is there; what to do next, in words.

    Raises UserError for a name that is not in DOWNLOADS, for too small a disk, and for a download
    that fails: then nothing of it stays.
    """
    download = DOWNLOADS.get(name)
    if download is None:
        known = f"there is no such data set; there are: {', '.join(DOWNLOADS)}"
        raise UserError(f"`{name}` cannot be fetched: {wanted(name, folder) or known}")
    for package in download.needs:
        if find_spec(package) is None:
            raise UserError(f"{name} is read with {package}: pip install {package}")
    lost = [path for path in download.makes if not (folder / path).exists()]
    if lost and lost != list(download.makes):
        raise UserError(f"{folder} holds a part of {name}, not {lost[0]}: remove it first")
    if lost:
        _place(name, download, folder)
    source, about = next((of, about) for of, about in KNOWN.items() if name in about.fetch)
    told = f"{folder} holds {name} {'now' if lost else 'already'}: name: {source}, root: {folder}"
    return f"{told}. Still to be placed: {about.rest}" if about.rest else told


def _place(name: str, download: Download, folder: Path) -> None:
    partial = folder / f"{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        partial.mkdir(parents=True)
        _room(name, folder, 2 * download.gigabytes)
        _get(name, download, partial)
        for path in download.makes:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).rename(folder / path)
    except OSError as error:
        raise UserError(f"{name} could not be placed in {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _get(name: str, download: Download, partial: Path) -> None:
    try:
        download.get(partial)
    except _BROKEN as error:
        files = [path for path in partial.rglob("*") if path.is_file()]
        newest = max(files, key=lambda path: path.stat().st_ctime_ns, default=None)
        at = f", the last file being {newest.name}" if newest else ""
        why = str(error).rstrip(".")
        raise UserError(f"{name} could not be fetched{at}: {why}. Nothing of it was kept") from None


def _room(name: str, folder: Path, gigabytes: float) -> None:
    """Raises UserError where archive and files would not fit."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise UserError(
            f"{name} takes about {gigabytes:g} GB until it is unpacked; {folder} has {free:.1f} GB"
        )


def listing() -> Iterator[str]:
    """Every data set in lines for people: what can be fetched, what is to be placed by hand."""
    for name, about in KNOWN.items():
        sizes = [f"{each} (about {DOWNLOADS[each].gigabytes:g} GB)" for each in about.fetch]
        yield f"{name}: {'fetch ' + ', '.join(sizes) if sizes else 'to be placed by hand'}"
        yield f"  from: {about.origin}; terms: {about.terms}"
        yield f"  holds: {about.layout}"
        if about.rest:
            yield f"  note: {about.rest}"
