"""The procedural demo, which `prepare` draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import AfterValidator

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.demo_images import CLASSES, SPLITS, Split, render
from salmask.params.ranges import NonNegativeInt, PositiveInt


def _check_train(images: Mapping[Split, int]) -> Mapping[Split, int]:
    if "train" not in images:
        raise ValueError("the number for train is missing")
    return images


Images = Annotated[Mapping[Split, PositiveInt], AfterValidator(_check_train)]


def read(
    out: Path, seed: int, *, root: str, images: Images = SPLITS, first: NonNegativeInt = 0
) -> Listing:
    """Draws the images into out/images, and the true object masks into out/masks.

    Args:
        out: folder to write into.
        seed: of the drawings.
        root: not read. DVC runs `prepare` again when this file changes.
        images: number of images of each split.
        first: index of the first image of each split. Different indices give different images.
    """
    files = []
    for split, count in images.items():
        for kind in ("images", "masks"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            drawing = render(seed, split, index)
            name = f"{split}/{index:05d}.png"
            Image.fromarray(drawing.image).save(out / "images" / name)
            Image.fromarray(drawing.mask).save(out / "masks" / name)
            files.append(ListedFile(name, drawing.label, split))
    return Listing(out / "images", CLASSES, files)


DATASET = Dataset(read, train_images=1_300)
