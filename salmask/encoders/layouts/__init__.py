"""Layouts of checkpoints by name: how a program names the weights that it saves.

Each module defines one record, `LAYOUT`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from salmask.by_name import ByName


@dataclass(frozen=True)
class Layout:
    """Names in a checkpoint.

    Args:
        trunk: prefix of the encoder's keys.
        others: first parts of keys that may stand beside the encoder. They are dropped.
        numbered: whether the encoder is torchvision's ResNet as a sequence of layers, whose keys
            have numbers in place of names.
        same_small_stem: whether the program's 3x3 stems compute the same as ours.
        rank: position among the layouts that `auto` tries, lowest first.
    """

    trunk: str
    others: tuple[str, ...] = ()
    numbered: bool = False
    same_small_stem: bool = True
    rank: int = 100

    def has_trunk(self, keys: Iterable[str]) -> bool:
        """Whether there are keys of an encoder, with numbers or names as expected."""
        inside = [key.removeprefix(self.trunk) for key in keys if key.startswith(self.trunk)]
        numbered = all(key.partition(".")[0].isdigit() for key in inside)
        return bool(inside) and numbered == self.numbered

    def unknown(self, keys: Iterable[str], drop: tuple[str, ...] = ()) -> list[str]:
        """Keys beside the encoder that are neither in `others` nor in `drop`."""
        known = tuple(f"{name}." for name in (*self.others, *drop))
        return [
            key
            for key in keys
            if not key.startswith(self.trunk) and not f"{key}.".startswith(known)
        ]


LAYOUTS: ByName[Layout] = ByName("salmask.encoders.layouts", "LAYOUT")


def recognise(keys: Iterable[str], drop: tuple[str, ...] = ()) -> str:
    """The name of the layout of a checkpoint with these keys.

    The first layout that explains all keys; else the first that explains some, so that reading
    reports the others; else `torchvision`, which has no prefix.
    """
    keys = list(keys)
    ranked = sorted(LAYOUTS.items(), key=lambda item: (item[1].rank, item[0]))
    partial = [name for name, layout in ranked if layout.trunk and layout.has_trunk(keys)]
    whole = [name for name in partial if not LAYOUTS[name].unknown(keys, drop)]
    return [*whole, *partial, "torchvision"][0]
