"""Named sets of annotated images. A source is a function (folder to write in, seed, *, root,
options) -> (the folder below which images lie, what to train on, what to test on).

To add one, write the function and enter it in SOURCES. Images stay where they are; only the demo,
which has none yet, draws its own into the folder.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks
from pydantic import Field, NonNegativeInt, PositiveInt

from salmask.datasets.demo_images import CLASSES
from salmask.datasets.demo_scenes import scene
from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.random_split import is_held_out
from salmask.detection import annotations
from salmask.detection.annotations import VOC_CLASSES, Bad
from salmask.detection.objects import Annotations, Picture
from salmask.detection.protocol import run
from salmask.detection.recipes import CHANGES, adapted
from salmask.errors import UserError
from salmask.params.values import Choice, Share, bind, pick

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Halves = tuple[Path, Annotations, Annotations]
Source = Callable[[Path, int], Halves]
_SPLITS = {"train": "train", "test": "val"}  # as the demo calls them


def configured(choice: Choice, where: str) -> tuple[Source, dict[str, Any]]:
    """What a section of `detect` asks for, every option checked: the source with its options, and
    those of `run`. Raises UserError."""
    source = pick(SOURCES, choice, where)
    reading, training = _keys(source), _keys(run)
    for key, value in choice.options.items():
        if key not in reading | training:
            allowed = ", ".join(dict.fromkeys([*reading, *training]))
            raise UserError(f"{where}: {key}: no such key, got {value!r} (allowed: {allowed})")
    read, learn = (
        bind(function, Choice(choice.name, {k: v for k, v in choice.options.items() if k in keys}),
             where)
        for function, keys in ((source, reading), (run, training))
    )  # fmt: skip
    try:
        adapted(learn["recipe"], **{key: learn[key] for key in CHANGES})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return partial(source, **read), learn


def _keys(function: Callable[..., Any]) -> dict[str, None]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}


def voc(
    out: Path,
    seed: int,
    *,
    root: Path,
    train: Names = ("VOC2007/trainval", "VOC2012/trainval"),
    test: Names = ("VOC2007/test",),
    classes: Names = VOC_CLASSES,
    bad: Bad = "skip",
) -> Halves:
    """PASCAL VOC's folders in `root`. train, test: FOLDER/LIST, which is
    root/FOLDER/ImageSets/Main/LIST.txt, or LIST alone where root is such a folder. bad: what
    becomes of unusable images and objects, `skip` or `stop`."""
    root = folder_of(root, "root")

    def read(lists: Names) -> Annotations:
        parts = [_inside(root, name).parent for name in lists]
        return annotations.joined(
            *(annotations.voc(folder, Path(name).name, classes, bad)
              for folder, name in zip(parts, lists, strict=True))
        )  # fmt: skip

    return root, read(train), read(test)


def coco(
    out: Path,
    seed: int,
    *,
    root: Path,
    train: str = "annotations/instances_train2017.json",
    train_images: str = "train2017",
    test: str | None = "annotations/instances_val2017.json",
    test_images: str = "val2017",
    test_share: Share = 0.2,
    masks: bool | None = None,
    bad: Bad = "skip",
) -> Halves:
    """Files in COCO's format in `root`, and the folders of their images. test: null holds out
    `test_share` of the images of `train`, chosen by the seed. masks: null reads them where all
    objects have some. bad: as for `voc`."""
    root = folder_of(root, "root")

    def read(file: str, images: str) -> Annotations:
        return annotations.coco(_inside(root, file), _inside(root, images), masks, bad)

    first = read(train, train_images)
    if test is not None:
        return root, first, read(test, test_images)
    base = _inside(root, train_images)
    chosen = [is_held_out(str(p.file.relative_to(base)), seed, test_share) for p in first.pictures]
    parts = [
        replace(first, pictures=tuple(p for p, is_test in zip(first.pictures, chosen, strict=True)
                                      if is_test == wanted))
        for wanted in (False, True)
    ]  # fmt: skip
    if not all(part.pictures for part in parts):
        raise UserError(
            f"test_share {test_share:g} of {len(chosen)} images leaves none to train on or to test"
        )
    return root, parts[0], replace(parts[1], skipped=())


def demo(
    out: Path,
    seed: int,
    *,
    root: str,
    images: dict[Literal["train", "test"], PositiveInt] = {"train": 200, "test": 60},  # noqa: B006
    side: PositiveInt = 96,
    objects: PositiveInt = 3,
    first: NonNegativeInt = 20_000,
) -> Halves:
    """Drawings with up to `objects` things each, drawn into out/images. root: ignored; it stands in
    params.yaml for DVC to watch. side: px. first: the number of the first drawing."""
    if set(images) != set(_SPLITS):
        raise UserError(f"images: how many for train and for test are needed, got {images}")
    halves = {}
    for name, count in images.items():
        folder = out / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for index in range(first, first + count):
            drawn = scene(seed, _SPLITS[name], index, side, objects)
            file = folder / f"{index:05d}.png"
            Image.fromarray(drawn.image).save(file)
            pictures.append(_described(file, drawn.masks, drawn.labels))
        halves[name] = Annotations(CLASSES, tuple(pictures), "coco")
    return out, halves["train"], halves["test"]


def _described(file: Path, masks: np.ndarray, labels: np.ndarray) -> Picture:
    """masks: (n,H,W) bool, none empty."""
    boxes = []
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    runs = coco_masks.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    height, width = masks.shape[1:]
    return Picture(
        file,
        height,
        width,
        np.array(boxes, dtype=np.float64),
        labels,
        np.zeros(len(masks), dtype=bool),
        masks.sum(axis=(1, 2)).astype(np.float64),
        tuple(runs),
    )


def _inside(root: Path, name: str) -> Path:
    """What DVC does not watch would change unnoticed."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name} must be a path within root ({root}), which DVC watches")
    return root / name


SOURCES: dict[str, Callable[..., Any]] = {"voc": voc, "coco": coco, "demo": demo}
