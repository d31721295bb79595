"""What a person should know about a set of images, though none of it stops anyone."""

from collections.abc import Sequence

import numpy as np

from salmask.datasets.listing import shorten


def first_with(digests: bytes) -> np.ndarray:
    """For every row the first row of the same content: (N,) int64. digests: 32 bytes a row."""
    rows = np.frombuffer(digests, dtype="S32")
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    return first[group]


def notes(
    classes: Sequence[str],
    labels: np.ndarray,
    splits: np.ndarray,
    same_as: np.ndarray,
    empty: Sequence[str],
) -> list[str]:
    """Sentences on copies, leaks, empty folders, classes that a split lacks, missing labels.

    labels: (N,) int64, -1 for none; splits: (N,) str; same_as: (N,) as `first_with` gives it.
    empty: the folders that would be classes if they held images.
    """
    others = [split for split in dict.fromkeys(splits.tolist()) if split != "train"]
    said = [*_copies(splits, others, same_as), *_classes(classes, labels, splits, others)]
    if empty:
        said.append(f"folders without images, which make no class: {shorten(empty)}")
    return said


def _copies(splits: np.ndarray, others: list[str], same_as: np.ndarray) -> list[str]:
    said = []
    copies = int((same_as != np.arange(len(same_as))).sum())
    if copies:
        said.append(
            f"duplicate content: {copies} of {len(same_as)} images have the bytes of an earlier "
            "one; all are kept, see duplicates.csv"
        )
    trained_on = np.isin(same_as, same_as[splits == "train"])
    for split in others:
        leaked, all_ = int(trained_on[splits == split].sum()), int((splits == split).sum())
        if leaked:
            said.append(
                f"leak: {leaked} of {all_} images of {split} also stand in train; its scores "
                "will be too good"
            )
    return said


def _classes(
    classes: Sequence[str], labels: np.ndarray, splits: np.ndarray, others: list[str]
) -> list[str]:
    said = []

    def of(numbers: set[int]) -> str:
        return shorten([classes[number] for number in sorted(numbers)])

    used = {split: set(labels[splits == split].tolist()) - {-1} for split in ("train", *others)}
    in_use = set().union(*used.values())
    if unused := set(range(len(classes))) - in_use:
        said.append(f"classes without a usable image: {of(unused)}")
    for split in others:
        for one, other in (("train", split), (split, "train")):
            if used[other] and (lacking := used[one] - used[other]):
                said.append(f"classes of {one} without images in {other}: {of(lacking)}")
    if not in_use:
        said.append("no labels: evaluations that need them are left out")
    elif len(in_use) == 1:
        said.append(f"only one class, {of(in_use)}: evaluations of labels are left out")
    return said
