"""Notes about a set of images: duplicates, leaks between splits, missing classes and labels.

They are informative: none of them stops `prepare`.
"""

from collections.abc import Sequence

import numpy as np

from salmask.datasets.listing import shorten


def first_with_same_content(digests: bytes) -> np.ndarray:
    """For every row, the first row with the same content: (N,) int64.

    digests: 32 bytes per row.
    """
    rows = np.frombuffer(digests, dtype="S32")
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    return first[group]


def notes_on(
    classes: Sequence[str],
    labels: np.ndarray,
    splits: np.ndarray,
    same_as: np.ndarray,
    empty_folders: Sequence[str],
) -> list[str]:
    """Sentences about duplicates, leaks, classes, labels and empty folders.

    Args:
        classes: class names.
        labels: (N,) int64, -1 for none.
        splits: (N,) str.
        same_as: (N,) int64, as `first_with_same_content` returns it.
        empty_folders: folders that would be classes if they contained images.
    """
    others = [split for split in dict.fromkeys(splits.tolist()) if split != "train"]
    notes = [*_duplicates(splits, others, same_as), *_classes(classes, labels, splits, others)]
    if empty_folders:
        notes.append(f"folders without images, which make no class: {shorten(empty_folders)}")
    return notes


def _duplicates(splits: np.ndarray, others: list[str], same_as: np.ndarray) -> list[str]:
    notes = []
    duplicates = int((same_as != np.arange(len(same_as))).sum())
    if duplicates:
        notes.append(
            f"duplicate content: {duplicates} of {len(same_as)} images have the bytes of an "
            "earlier one; all are kept, see duplicates.csv"
        )
    in_train = np.isin(same_as, same_as[splits == "train"])
    for split in others:
        leaked, total = int(in_train[splits == split].sum()), int((splits == split).sum())
        if leaked:
            notes.append(
                f"leak: {leaked} of {total} images of {split} are also in train; its scores will "
                "be too high"
            )
    return notes


def _classes(
    classes: Sequence[str], labels: np.ndarray, splits: np.ndarray, others: list[str]
) -> list[str]:
    notes = []

    def names_of(numbers: set[int]) -> str:
        return shorten([classes[number] for number in sorted(numbers)])

    used = {split: set(labels[splits == split].tolist()) - {-1} for split in ("train", *others)}
    in_use = set().union(*used.values())
    if unused := set(range(len(classes))) - in_use:
        notes.append(f"classes without a usable image: {names_of(unused)}")
    for split in others:
        for one, other in (("train", split), (split, "train")):
            if used[other] and (missing := used[one] - used[other]):
                notes.append(f"classes of {one} without images in {other}: {names_of(missing)}")
    if not in_use:
        notes.append("no labels: evaluations that need them are left out")
    elif len(in_use) == 1:
        notes.append(f"only one class, {names_of(in_use)}: evaluations of labels are left out")
    return notes
