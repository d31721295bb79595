"""Data sets by name: the module `salmask/datasets/<name>.py` defines the record `DATASET`.

A new data set is one new file. Nothing here imports torch or torchvision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salmask.by_name import ByName


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a data set.

    Args:
        path: relative to the root of the listing.
        label: index into the class names; -1 for none.
        split: `train`, `val`, `test` or another name.
    """

    path: str
    label: int
    split: str


@dataclass(frozen=True)
class Listing:
    """All files of a data set.

    Args:
        root: absolute folder.
        classes: class names, in the order of the labels.
        files: all files, in the order of the manifest.
        empty_folders: folders that would be classes if they contained images.
        notes: sentences about what was not read.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[ListedFile]
    empty_folders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Download:
    """Archives that `salmask fetch` downloads with a class of torchvision.

    Args:
        dataset: name of the class in torchvision.datasets, which downloads and unpacks the
            archives into a folder.
        files: the unpacked files and folders to keep, relative to that folder.
        gigabytes: approximate size of the archives.
        parts: arguments of the class for each part of the download.
        packages: packages that reading the data set needs.
    """

    dataset: str
    files: tuple[str, ...]
    gigabytes: float
    parts: Sequence[Mapping[str, str]] = ({},)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set that `data` and `transfer` in params.yaml can name.

    Args:
        read: function (out, seed, *, root, ...) -> Listing. It may write image files into the
            folder `out`. `seed` is for random splits. `root` is the folder of the data set. Its
            other keyword-only arguments are the options of the data set. It raises LayoutError when
            `root` has another layout.
        layout: what `root` must contain. Empty when `read` accepts any folder of images.
        origin: who publishes the data set.
        terms: its licence, as far as we know it. The publisher's text is authoritative.
        note: what is missing after a download or, without a download, how to get the data set.
        downloads: by the name that `salmask fetch` accepts.
        train_images: number of training images as published, for cost estimates; None if unknown.
    """

    read: Callable[..., Listing]
    layout: str = ""
    origin: str = ""
    terms: str = ""
    note: str = ""
    downloads: Mapping[str, Download] = field(default_factory=dict)
    train_images: int | None = None

    def instructions(self, name: str, root: Path) -> str:
        """The expected layout of `root`, and how to get the data set; "" for any-folder sets."""
        if not self.layout:
            return ""
        commands = ", ".join(f"`salmask fetch {download} {root}`" for download in self.downloads)
        steps = [f"run {commands}" if commands else f"it is published by {self.origin}", self.note]
        how = "; ".join(step for step in steps if step)
        return f"Expected for {name}: {self.layout}. To get it: {how}"


DATASETS = ByName[Dataset]("salmask.datasets", "DATASET")
