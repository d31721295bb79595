"""Listings by class, and names of classes and files for messages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from salmask.datasets import ListedFile, Listing
from salmask.errors import UserError

_MAX_NAMES = 5


def listing_by_class(
    root: Path, class_names: Mapping[str, str], splits: Mapping[str, str]
) -> Listing:
    """A listing with classes in alphabetical order.

    Args:
        root: folder of the data set.
        class_names: path -> name of its class; "" for none.
        splits: path -> split, in the order of the listing.

    Raises UserError when no file has a class.
    """
    classes = sorted({class_names[path] for path in splits} - {""})
    if not classes:
        raise UserError(f"{root}: no images in class folders")
    labels = {name: label for label, name in enumerate(classes)} | {"": -1}
    files = [ListedFile(path, labels[class_names[path]], split) for path, split in splits.items()]
    return Listing(root.resolve(), printable_names(classes), files)


def printable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as valid Unicode: bytes of a folder's name that are not UTF-8 become \\udcXX."""
    return tuple(name.encode(errors="backslashreplace").decode() for name in names)


def shorten(names: Sequence[str]) -> str:
    """At most five names and the number of further ones, for a message.

    Characters that a terminal cannot show are escaped.
    """
    shown = ["".join(map(_escape, name)) for name in names[:_MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
