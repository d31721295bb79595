"""`salmask fetch`: downloads by torchvision, which has the address and the md5 of every archive.

Archives are downloaded and unpacked in FOLDER/NAME.partial. Only complete data sets are moved out.
"""

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from salmask.datasets import DATASETS, Dataset, Download
from salmask.errors import UserError

_DOWNLOAD_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile
)  # fmt: skip


def downloads() -> dict[str, tuple[str, Dataset]]:
    """Every name that `fetch` accepts, with the data set that it belongs to."""
    return {
        download: (name, dataset)
        for name, dataset in DATASETS.items()
        for download in dataset.downloads
    }


def fetch(name: str, folder: Path) -> str:
    """Downloads `name` into a folder, unless it is there; returns a message with the next step.

    Raises UserError for an unknown name, for too little disk space, and for a failed download,
    which leaves no files.
    """
    available = downloads()
    if name not in available:
        instructions = DATASETS[name].instructions(name, folder) if name in DATASETS else ""
        known = f"there is no such data set; there are: {', '.join(available)}"
        raise UserError(f"`{name}` cannot be downloaded: {instructions or known}")
    dataset_name, dataset = available[name]
    download = dataset.downloads[name]
    for package in download.packages:
        if find_spec(package) is None:
            raise UserError(f"{name} is read by {package}: pip install {package}")
    missing = [path for path in download.files if not (folder / path).exists()]
    if missing and missing != list(download.files):
        raise UserError(
            f"{folder} contains a part of {name}, without {missing[0]}: remove it first"
        )
    if missing:
        _download_into(folder, name, download)
    state = "now" if missing else "already"
    message = f"{folder} {state} contains {name}: use name: {dataset_name}, root: {folder}"
    return f"{message}. Still missing: {dataset.note}" if dataset.note else message


def _download_into(folder: Path, name: str, download: Download) -> None:
    partial = folder / f"{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
        partial.mkdir(parents=True)
        needed, free = 2 * download.gigabytes, shutil.disk_usage(folder).free / 1e9
        if free < needed:
            raise UserError(
                f"{name} needs about {needed:g} GB while it is unpacked; {folder} has {free:.1f} GB"
            )
        _run_download(name, download, partial)
        for path in download.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).rename(folder / path)
    except OSError as error:
        raise UserError(f"{name} cannot be written to {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_download(name: str, download: Download, partial: Path) -> None:
    from torchvision import datasets  # torchvision takes seconds to import

    try:
        for arguments in download.parts:
            getattr(datasets, download.dataset)(partial, download=True, **arguments)
    except _DOWNLOAD_ERRORS as error:
        files = [path for path in partial.rglob("*") if path.is_file()]
        newest = max(files, key=lambda path: path.stat().st_ctime_ns, default=None)
        last = f" (last file: {newest.name})" if newest else ""
        reason = str(error).rstrip(".")
        raise UserError(
            f"the download of {name} failed{last}: {reason}. No file was kept"
        ) from None


def listing() -> Iterator[str]:
    """Lines about every data set of known layout: downloads, publisher, terms, files."""
    for name, dataset in DATASETS.items():
        if not dataset.layout:
            continue
        sizes = [f"{key} (about {each.gigabytes:g} GB)" for key, each in dataset.downloads.items()]
        yield f"{name}: {'fetch ' + ', '.join(sizes) if sizes else 'download it by hand'}"
        yield f"  from: {dataset.origin}; terms: {dataset.terms}"
        yield f"  files: {dataset.layout}"
        if dataset.note:
            yield f"  note: {dataset.note}"
