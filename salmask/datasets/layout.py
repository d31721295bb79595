"""How known data sets lie on disk, and what to tell a person whose folder is not like that."""

from dataclasses import dataclass
from pathlib import Path

from salmask.datasets.folders import is_folder
from salmask.errors import UserError


class LayoutError(UserError):
    """A folder is not laid out as its data set: what is missing, and where it was looked for.
    `configured` adds what `wanted` says of the set."""


@dataclass(frozen=True)
class About:
    """A data set for people. layout: what its folder holds. origin: who gives it. terms: as far as
    we know them; the origin decides. fetch: what `salmask fetch` calls it, if it can get it. rest:
    what then is still missing, or, of a set that it cannot get, how to come by it."""

    layout: str
    origin: str
    terms: str
    fetch: tuple[str, ...] = ()
    rest: str = ""


_IMAGENET = (
    "train/WNID/*.JPEG and val/WNID/*.JPEG, a folder for each WordNet id; val may be flat, as its "
    "archive unpacks, with ILSVRC2012_devkit_t12.tar.gz, torchvision's meta.bin or Kaggle's "
    "LOC_val_solution.csv beside it"
)
_IMAGENET_TERMS = "non-commercial research, to be agreed to"

KNOWN = {
    "imagenet": About(
        _IMAGENET,
        "ImageNet's own site, or its challenge on Kaggle",
        _IMAGENET_TERMS,
        rest="get the archives there with an account and unpack them",
    ),
    "imagenet100": About(
        f"a folder of ImageNet-1K, of which 100 classes are read, or of these alone: {_IMAGENET}",
        "ImageNet's own site, or its challenge on Kaggle",
        _IMAGENET_TERMS,
        rest="get ImageNet there with an account and unpack it",
    ),
    "imagenette": About(
        "train/CLASS/*.JPEG and val/CLASS/*.JPEG, ten classes, or imagenette2, imagenette2-320 or "
        "imagenette2-160 with these",
        "fast.ai",
        "ImageNet's photographs: non-commercial research",
        ("imagenette", "imagenette-320", "imagenette-160"),
    ),
    "tinyimagenet": About(
        "wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, or "
        "tiny-imagenet-200 with these",
        "Stanford's course CS231n",
        "ImageNet's photographs: non-commercial research",
        rest="torchvision does not know it: get tiny-imagenet-200.zip there and unpack it",
    ),
    "cifar10": About(
        "cifar-10-batches-py, its python version", "University of Toronto", "none stated",
        ("cifar10",),
    ),
    "cifar100": About(
        "cifar-100-python, its python version", "University of Toronto", "none stated",
        ("cifar100",),
    ),
    "stl10": About(
        "stl10_binary, its binary files", "Stanford", "ImageNet's photographs: research",
        ("stl10",),
    ),
    "caltech101": About(
        "CLASS/*.jpg, or one of 101_ObjectCategories, caltech-101/101_ObjectCategories and "
        "caltech101/101_ObjectCategories with these",
        "Caltech", "CC BY 4.0", ("caltech101",),
    ),
    "flowers102": About(
        "jpg/, imagelabels.mat and setid.mat, or flowers-102 with these",
        "Oxford's Visual Geometry Group", "none stated; for research", ("flowers102",),
    ),
    "inat2018": About(
        "train_val2018/GROUP/CATEGORY/*.jpg (or torchvision's 2018/...), train2018.json and "
        "val2018.json",
        "iNaturalist's competition of 2018",
        "non-commercial research; each photograph has its own licence",
        ("inat2018",),
        rest="train2018.json and val2018.json, the annotations, come from the competition's page",
    ),
    "places205": About(
        "trainvalsplit_places205/{train,val}_places205.csv, and the images below "
        "data/vision/torralba/deeplearning/images256, images256 or the folder itself",
        "MIT's Places project",
        "non-commercial research and education",
        rest="torchvision has only Places365, which is another set: get the images of 256 px and "
        "the lists of Places-205 there",
    ),
    "voc": About(
        "VOC2007 and VOC2012, with JPEGImages/ and ImageSets/Main/*.txt, or VOCdevkit with these",
        "the PASCAL VOC challenges, Oxford",
        "Flickr's terms",
        ("voc2007", "voc2012"),
    ),
    "coco": About(
        "train2017/*.jpg and, if there is one, val2017/*.jpg, or images with these",
        "COCO's own site",
        "annotations CC BY 4.0; each photograph has its own licence",
        rest="torchvision reads it but does not get it: get train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip there and unpack them",
    ),
}  # fmt: skip


def wanted(name: str, root: Path) -> str:
    """What a data set wants to find in `root`, and how to get it there; "" for an unknown one."""
    about = KNOWN.get(name)
    if about is None:
        return ""
    commands = ", ".join(f"`salmask fetch {each} {root}`" for each in about.fetch)
    ways = [commands or f"it comes from {about.origin}", about.rest]
    return f"{name} wants: {about.layout}. To have it: {'; '.join(filter(None, ways))}"


def inner(root: Path, *names: str) -> Path:
    """The one of these folders that is in `root`, or `root` itself where none is. Raises
    LayoutError where several are."""
    found = [root / name for name in names if is_folder(root / name)]
    if len(found) > 1:
        both = " and ".join(folder.name for folder in found)
        raise LayoutError(f"{root} holds {both}: name one of them as root")
    return found[0] if found else root


def folder(path: Path) -> Path:
    """A folder that must be there. Raises LayoutError."""
    if not is_folder(path):
        raise LayoutError(f"there is no folder {path}")
    return path


def content(path: Path) -> bytes:
    """What is in a file that must be there. Raises LayoutError."""
    try:
        return path.read_bytes()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise LayoutError(f"{path} cannot be read: {why}") from None


def text(path: Path) -> str:
    """`content` as text; bytes that are not UTF-8 stay what they are."""
    return content(path).decode("utf-8", "surrogateescape")
