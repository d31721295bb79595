"""The rows of a saliency store, and the plan of a store. See `salmask.saliency.store`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salmask.files import value_digest

SCHEMA = "salmask.saliency/2"


@dataclass(frozen=True)
class StorePlan:
    """Shape and identity of a store.

    Args:
        rows: number of images.
        shard_rows: images per shard.
        grids: level in px -> (U, V).
        attributes: manifest and localizer; nothing that differs between equal runs.
        correction: number of views to fit the correction on; 0 for no correction.
    """

    rows: int
    shard_rows: int
    grids: Mapping[int, tuple[int, int]]
    attributes: Mapping[str, Any]
    correction: int = 0

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> range:
        """The rows of one shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def sealed(self) -> dict[str, Any]:
        """All attributes of the store, with a digest over them."""
        described = dict(self.attributes) | {
            "schema": SCHEMA,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "grids": {str(level): list(grid) for level, grid in sorted(self.grids.items())},
            "correction": self.correction,
        }
        return described | {"seal": value_digest(described)}


@dataclass(frozen=True)
class Maps:
    """Rows of a store.

    Args:
        activation: level in px -> (n,U,V) float16.
        mean: level in px -> (n,) float32.
        sha256: (n,32) uint8.
    """

    activation: Mapping[int, Tensor]
    mean: Mapping[int, Tensor]
    sha256: Tensor

    @property
    def known(self) -> Tensor:
        """Whether the image of each row could be read: (n,) bool."""
        return known_rows(self.sha256)

    def pick(self, index: Tensor) -> "Maps":
        """Selected rows: index (k,) int64, or mask (n,) bool."""
        return Maps(
            {level: maps[index] for level, maps in self.activation.items()},
            {level: mean[index] for level, mean in self.mean.items()},
            self.sha256[index],
        )


def scaled(raw: Mapping[int, Tensor], sha256: Tensor) -> Maps:
    """Divides each map by the mean of its absolute values.

    Args:
        raw: level in px -> activation maps (n,U,V).
        sha256: (n,32) uint8. Rows of zeros (no image) get maps of zeros.
    """
    known = known_rows(sha256)[:, None, None]
    raw = {level: torch.where(known, maps.float(), 0) for level, maps in raw.items()}
    mean = {level: maps.abs().mean(dim=(1, 2)) for level, maps in raw.items()}
    scale = {level: torch.where(m > 0, m, 1)[:, None, None] for level, m in mean.items()}
    return Maps({level: (raw[level] / scale[level]).half() for level in raw}, mean, sha256)


def known_rows(sha256: Tensor) -> Tensor:
    """The rows whose image could be read: (n,32) uint8 -> (n,) bool."""
    return (sha256.contiguous().view(torch.int64) != 0).any(dim=1)  # eight bytes at once
