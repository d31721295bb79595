"""PASCAL VOC's folders (Everingham et al. 2010)."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.folders import read_bytes
from salmask.datasets.voc import listed_images
from salmask.detection.annotations import AnnotatedObject, AnnotationCollector, Bad
from salmask.detection.datasets import Names, Splits, path_inside
from salmask.detection.objects import Annotations
from salmask.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def read(
    folder: Path,
    seed: int,
    *,
    root: Path,
    train: Names = ("VOC2007/trainval", "VOC2012/trainval"),
    test: Names = ("VOC2007/test",),
    classes: Names = VOC_CLASSES,
    bad: Bad = "skip",
) -> Splits:
    """Training and test images from lists of PASCAL VOC.

    Args:
        folder: not used.
        seed: not used.
        root: VOCdevkit with VOC2007/ and VOC2012/, or one such folder, or a fingerprint file.
        train: lists of training images. FOLDER/LIST is root/FOLDER/ImageSets/Main/LIST.txt, and
            LIST alone is root/ImageSets/Main/LIST.txt.
        test: lists of test images.
        classes: names of the classes, in the order of the labels.
        bad: `skip` lists unusable images and objects, `stop` raises an error for them.
    """
    root = folder_of(root, "root")

    def joined(lists: Names) -> Annotations:
        paths = [path_inside(root, name) for name in lists]
        parts = [read_split(path.parent, path.name, classes, bad) for path in paths]
        images = tuple(image for part in parts for image in part.images)
        skipped = tuple(line for part in parts for line in part.skipped)
        notes = tuple(note for part in parts for note in part.notes)
        return Annotations(classes, images, "voc", skipped, notes)

    return root, joined(train), joined(test)


def read_split(
    folder: Path, split: str, classes: tuple[str, ...] = VOC_CLASSES, bad: Bad = "skip"
) -> Annotations:
    """A split of a folder with Annotations/, ImageSets/Main/ and JPEGImages/.

    The files have 1-based pixels, and the last pixel belongs to the box. Difficult objects are
    `ignored`.

    Args:
        folder: such as VOC2007.
        split: `trainval`, `test`, ...
        classes: names of the classes, in the order of the labels.
        bad: `skip` or `stop`.

    Raises:
        UserError: the list of the split is missing or empty, or no image is usable.
    """
    split_list = folder / "ImageSets" / "Main" / f"{split}.txt"
    images = listed_images(folder, split)
    if not images:
        raise UserError(f"{split_list} lists no image")
    collector = AnnotationCollector(tuple(classes), bad)
    for name, path in images.items():
        xml = folder / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.fromstring(read_bytes(xml))  # it may declare its encoding
            size = (_number(root, "size/height"), _number(root, "size/width"))
            objects = list(_objects(root))
        except (UserError, ElementTree.ParseError, ValueError, LookupError) as error:
            reason = str(error)
            collector.problems.append(reason if str(xml) in reason else f"{xml}: {reason}")
            collector.listed_images += 1
            continue
        collector.add_image(folder / "JPEGImages" / path, size, objects)
    return collector.annotations("voc", split_list)


def _objects(root: ElementTree.Element) -> Iterator[AnnotatedObject]:
    for item in root.iter("object"):
        edges = [_number(item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        box = (edges[0] - 1, edges[1] - 1, edges[2], edges[3])  # 1..W inclusive -> 0..W
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        yield AnnotatedObject((item.findtext("name") or "").strip(), box, difficult)


def _number(item: ElementTree.Element, path: str) -> int:
    """The number at a path, rounded: some tools write fractions of pixels."""
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"<{path}> is missing")
    try:
        return round(float(text))
    except (ValueError, OverflowError):  # OverflowError: of infinity
        raise ValueError(f"<{path}> is {text!r}, which is not a number") from None


DATASET = read
