"""ImageNet and what was made of it: classes are folders named by WordNet ids."""

import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import PositiveInt

from salmask.data.notices import named
from salmask.data.prepare import Found, Listing
from salmask.datasets.folders import images_below, is_folder
from salmask.datasets.layout import LayoutError, folder, inner, text
from salmask.errors import UserError

_WNID = re.compile(r"n\d{8}")
_HUNDRED = Path(__file__).with_name("imagenet100.json")
_DEVKIT, _META, _KAGGLE = "ILSVRC2012_devkit_t12.tar.gz", "meta.bin", "LOC_val_solution.csv"


def imagenet(out: Path, seed: int, *, root: Path, classes: PositiveInt = 1000) -> Listing:
    """ImageNet-1K (ILSVRC 2012) as root/train/WNID/... and root/val/WNID/...; val may also hold its
    images directly where a file in root tells their classes: ILSVRC2012_devkit_t12.tar.gz,
    torchvision's meta.bin or Kaggle's LOC_val_solution.csv.

    classes: how many train must hold, so that no half of the set is taken for the whole.
    """
    return _listing(root, _wnids(root, classes))


def imagenet100(out: Path, seed: int, *, root: Path) -> Listing:
    """The 100 classes of ImageNet-100 in a folder of ImageNet-1K, or one of these alone. The list
    is that of Tian et al. 2020 (CMC) and of Chin et al. 2024."""
    return _listing(root, json.loads(_HUNDRED.read_text()))


def imagenette(out: Path, seed: int, *, root: Path) -> Listing:
    """Imagenette, ten classes of ImageNet as train/CLASS/... and val/CLASS/... in root or in its
    folder imagenette2, imagenette2-320 or imagenette2-160; a class's folder may have any name. Its
    list of noisy labels is not read."""
    root = inner(root, "imagenette2", "imagenette2-320", "imagenette2-160")
    names = _folders(root / "train")
    if len(names) != 10:
        raise LayoutError(f"{root / 'train'} holds {len(names)} folders of classes, not 10")
    return _listing(root, names)


def tinyimagenet(out: Path, seed: int, *, root: Path) -> Listing:
    """Tiny-ImageNet-200 as its archive unpacks: wnids.txt, train/WNID/images/... (100,000),
    val/images/... (10,000) with val/val_annotations.txt; its test images have no labels and are not
    used. All this in root, or in root/tiny-imagenet-200."""
    root = inner(root, "tiny-imagenet-200")
    label = {wnid: number for number, wnid in enumerate(sorted(text(root / "wnids.txt").split()))}
    files = []
    for wnid in label:
        place = f"train/{wnid}/images"
        images = images_below(folder(root / place))[0]
        files += [Found(f"{place}/{path}", label[wnid], "train") for path in images]
    folder(root / "val" / "images")
    told = root / "val" / "val_annotations.txt"
    for number, line in enumerate(text(told).splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label:
            raise LayoutError(f"{told}, line {number}: no file and class of wnids.txt: {line!r}")
        files.append(Found(f"val/images/{name}", label[wnid], "val"))
    return Listing(root.resolve(), tuple(label), files)


def _folders(split: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder(split).iterdir() if is_folder(path))
    except OSError as error:
        raise UserError(f"{split} cannot be listed: {error.strerror}") from None


def _wnids(root: Path, count: int) -> list[str]:
    """The classes of root/train. Raises LayoutError where they are not `count`."""
    train = root / "train"
    wnids = [name for name in _folders(train) if _WNID.fullmatch(name)]
    if len(wnids) != count:
        said = f"{train} holds {len(wnids)} folders named by WordNet ids, as n01440764, not {count}"
        if any(train.glob("n*.tar")):
            said += ", but .tar files: unpack each into a folder of its name"
        raise LayoutError(said)
    return wnids


def _listing(root: Path, wnids: Sequence[str]) -> Listing:
    label = {wnid: number for number, wnid in enumerate(wnids)}
    files = []
    for split in ("train", "val"):
        flat = _flat(folder(root / split)) if split == "val" else []
        found = _labelled(root, flat) if flat else _sorted(root / split, wnids)
        files += [Found(f"{split}/{p}", label[w], split) for p, w in found if w in label]
    return Listing(root.resolve(), tuple(wnids), files)


def _sorted(split: Path, wnids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Path and class of every image of some classes' folders."""
    lost = [wnid for wnid in wnids if not is_folder(split / wnid)]
    if lost:
        raise LayoutError(f"{split} lacks {len(lost)} of {len(wnids)} class folders: {named(lost)}")
    for wnid in wnids:
        yield from ((f"{wnid}/{path}", wnid) for path in images_below(split / wnid)[0])


def _flat(val: Path) -> list[str]:
    """The names of images that lie in no folder of a class."""
    return sorted(path.name for path in val.glob("ILSVRC2012_val_*.*"))


def _labelled(root: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and class of the validation images that lie directly in root/val."""
    if (root / _KAGGLE).is_file():
        rows = (line.partition(",") for line in text(root / _KAGGLE).splitlines())
        told = {stem: rest.partition(" ")[0] for stem, _, rest in rows}
        wnids = [told.get(name.partition(".")[0], "") for name in names]
    else:
        wnids = _by_devkit(root)
    known = sum(map(bool, wnids))
    if {len(wnids), known} != {len(names)}:
        said = f"holds {len(names)} images directly, and the classes of {known} are told"
        raise LayoutError(f"{root / 'val'} {said}")
    return zip(names, wnids, strict=True)


def _by_devkit(root: Path) -> list[str]:
    """The class of every validation image, in the order of their names, as torchvision reads it."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    try:
        if (root / _META).is_file():
            return list(load_meta_file(str(root))[1])
        if not (root / _DEVKIT).is_file():
            raise LayoutError(
                f"{root}/val holds images, not folders of classes, and {root} none of {_DEVKIT}, "
                f"{_META} and {_KAGGLE} to tell their classes"
            )
        with TemporaryDirectory() as scratch:  # root may be for reading only
            parse_devkit_archive(scratch, str((root / _DEVKIT).resolve()))
            return list(load_meta_file(scratch)[1])
    except ImportError:
        raise UserError(f"{_DEVKIT} is read with scipy: pip install scipy") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError):
        raise LayoutError(
            f"{_META} or {_DEVKIT} of {root} is not what torchvision wrote or knows"
        ) from None
